"""Checks of a command line before Hydra makes a folder for it."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict, read_write

from rule_extrapolation.config.building import check_before_lightning
from rule_extrapolation.config.composing import register
from rule_extrapolation.config.depth_and_width import set_depth_and_width
from rule_extrapolation.config.messages import one_line
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.files import write_failure
from rule_extrapolation.experiment.broken_runs import set_aside_if_broken
from rule_extrapolation.experiment.hydra_internals import compose_job, jobs_of, sweep_overrides
from rule_extrapolation.experiment.processes import is_follower, lock
from rule_extrapolation.experiment.sweep import Job, Sweep, begin, check_same_run
from rule_extrapolation.reporting import sweeps
from rule_extrapolation.reporting.messages import messages_printed
from rule_extrapolation.runs.run_folder import check_free

# Hydra instantiates the callback in the processes of launchers too, where the resolvers are needed as well.
register()

if TYPE_CHECKING:
    from rule_extrapolation.experiment.assembling import Experiment


HELD = ExitStack()
"""The lock of the run's folder, from before Hydra writes to it until the command ends."""


class Preflight(Callback):
    """A Hydra callback that assembles every job without weights, and exits with one line if one is invalid."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with failing_in_one_line():
            check_writable(config.hydra.run.dir, "hydra.run.dir")
            [experiment] = check([config])
            if experiment.world.rank:
                return self.use_no_folder(config)
            folder = Path(config.hydra.run.dir)
            if config.sweep is not None:
                for run in Job([], config, folder).runs:
                    set_aside_if_broken(config, run)
            check_unused(config, folder)
            folder.mkdir(parents=True, exist_ok=True)
            HELD.enter_context(lock(folder, "hydra.run.dir"))
            check_unused(config, folder)  # which another process may have used in the meantime

    def use_no_folder(self, config: DictConfig) -> None:
        """Give a process that is not the first of its run a temporary folder in place of a run folder."""
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with flag_override(config, ["readonly", "struct"], False):
            config.hydra.run.dir, config.hydra.output_subdir = folder, None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with failing_in_one_line():
            if config.sweep is None:
                name = Path(config.hydra.sweep.dir).name
                with read_write(config.hydra):
                    plain = re.fullmatch(r"[A-Za-z_][\w.-]*", name)
                    config.hydra.overrides.task.append(f"sweep={name}" if plain else f"sweep='{name}'")
            check_writable(config.hydra.sweep.dir, "hydra.sweep.dir")
            check_launching(config.hydra)
            check_jobs(begin(config))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Drop the job's two configurations, a quarter of a megabyte, which Hydra keeps until the end of the sweep."""
        if config.hydra.mode == RunMode.MULTIRUN:
            job_return.cfg = job_return.hydra_cfg = None


def check_unused(config: DictConfig, folder: Path) -> None:
    """Raise a ConfigError if the folder holds another run, or without ``sweep`` any."""
    if config.sweep is not None:
        check_same_run(folder, config, "hydra.run.dir")
    else:
        check_free(str(folder), "hydra.run.dir", "*/results.json" if config.seeds else "results.json")


def check_writable(folder: str | None, key: str) -> None:
    """Raise a ConfigError unless the folder exists and can be written to, or can be made."""
    if not folder:
        raise ConfigError(key, folder, "must be set: the folder to write to")
    path = Path(folder).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir():
        raise ConfigError(key, folder, "is a file; name a folder" if there == path else f"{there} is a file")
    if not os.access(there, os.W_OK):
        raise ConfigError(key, folder, f"{there} cannot be written to; name another folder")


def check_launching(hydra: DictConfig) -> None:
    """Check the numbers of the sweeper and the launcher, which fail only when jobs start."""
    for name, least in (("sweeper.max_batch_size", 1), ("sweeper.n_trials", 1), ("sweeper.n_jobs", 1)):
        value = OmegaConf.select(hydra, name)
        if value is not None and not (type(value) is int and value >= least):
            raise ConfigError(f"hydra.{name}", value, f"must be an int of {least} or more")
    if hydra.launcher.get("n_jobs") == 0:
        raise ConfigError("hydra.launcher.n_jobs", 0, "must be the number of runs at a time, or -1 for all cores")
    if "slurm" in hydra.launcher._target_.lower() and shutil.which("srun") is None:
        choice = hydra.runtime.choices["hydra/launcher"]
        raise ConfigError("hydra/launcher", choice, "this machine has no srun; start it on a node of the cluster")


def check_jobs(sweep: Sweep) -> None:
    jobs = jobs_of(sweep.config)
    if jobs is None:
        check_search(sweep.config)
        return
    composed = [sweep.compose_job(job, number) for number, job in enumerate(jobs)]
    configs = [job.cfg for job in composed if not job.done]
    experiments = check(configs)
    sweep.print_skipped()
    sweeps.print_sizes(sizes(configs, experiments))


def sizes(configs: list[DictConfig], experiments: list[Experiment]) -> dict[str, set[tuple[int, str]]]:
    """By language, the models' numbers of weights and names. A model of several sizes is there with its smallest.

    Baselines, which are not trained, are left out.
    """
    least: dict[str, dict[str, int]] = {}
    for cfg, experiment in zip(configs, experiments):
        model, name = experiment.module.model, cfg.model.name
        if not model.baseline:
            found = least.setdefault(experiment.module.task.name, {})
            found[name] = min(model.num_parameters, found.get(name, model.num_parameters))
    return {language: {(size, name) for name, size in found.items()} for language, found in least.items()}


def check_search(config: DictConfig) -> None:
    """Check the settings that a search does not change."""
    overrides = sweep_overrides(config)
    if not any(override.is_sweep_override() for override in overrides):
        fix = "nothing to search over: set model.search or give ranges, such as optimizer.lr=1e-3,1e-2"
        raise ConfigError("model.search", None, fix)
    fixed = [override.input_line for override in overrides if not override.is_sweep_override()]
    check([compose_job(config, fixed, 0)[0]])


def check(configs: list[DictConfig]) -> list[Experiment]:
    """Assemble the experiments without weights."""
    check_depth_and_width(configs)
    configs = [set_depth_and_width(without_hydra(config)) for config in configs]
    for cfg in configs:
        check_before_lightning(cfg)
    from rule_extrapolation.experiment.assembling import assemble
    from rule_extrapolation.experiment.libraries import set_up_libraries

    set_up_libraries()
    return [assemble(cfg, device="meta") for cfg in configs]


def check_depth_and_width(configs: list[DictConfig]) -> None:
    """Raise a ConfigError that names all models of a sweep that have no depth or no width to set."""
    for key in ("depth", "width"):
        lacking = [cfg for cfg in configs if cfg[key] is not None and cfg.model.get(f"{key}_key") is None]
        if len(configs) > 1 and lacking:
            names = ", ".join(sorted({cfg.model.name for cfg in lacking}))
            fix = f"no {key} to set in {names}; sweep over them apart, without {key}="
            raise ConfigError(key, lacking[0][key], fix)


def without_hydra(config: DictConfig) -> DictConfig:
    cfg = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    if OmegaConf.is_interpolation(cfg, "run_dir"):
        with open_dict(cfg):
            cfg.run_dir = ""  # Hydra makes it later
    return cfg


@contextmanager
def failing_in_one_line() -> Iterator[None]:
    # Hydra turns an exception of a callback into a warning and starts the run.
    try:
        with messages_printed():
            yield
    except Exception as error:
        if full := write_failure(error, "the run folder"):
            fail(str(full), status=1)
        fail(one_line(error))


def fail(message: str, status: int = 2) -> None:
    """Print an error and exit with a status, by default that of a wrong command line."""
    if is_follower():
        time.sleep(3)  # the first process prints the same; torchrun would kill it if this one ended first
    else:
        print(f"error: {message}", file=sys.stderr)
    # Hydra swallows the exceptions of callbacks, but not an exit.
    raise SystemExit(status)
