"""Sweeps that the same command continues.

A run's folder is named by its identity, so that the same command finds the same folders: it skips finished runs,
resumes interrupted ones from their last checkpoint and retries failed ones. A failure does not stop the other runs.
This works with every Hydra launcher and sweeper, since ``ResumingLauncher`` wraps the launcher that is chosen.
"""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rule_extrapolation.config.checks import check_seeds
from rule_extrapolation.core.errors import ConfigError, WriteFailed
from rule_extrapolation.core.files import write_failure
from rule_extrapolation.experiment.broken_runs import set_aside_if_broken
from rule_extrapolation.experiment.hydra_internals import compose_job, wrap_launcher
from rule_extrapolation.experiment.processes import InUse, end_with_parent, lock
from rule_extrapolation.reporting import sweeps
from rule_extrapolation.runs.identity import identity
from rule_extrapolation.runs.run_folder import DONE, check_links, read_config, read_results, replace_text, write_results

ERROR_FILE = "error.txt"

current: Sweep | None = None
"""The sweep that this process launched."""


@dataclass
class Job:
    """One combination of a sweep's overrides: a run, or several with ``seeds``."""

    overrides: list[str]
    cfg: DictConfig
    folder: Path

    @property
    def runs(self) -> list[Path]:
        """The folders of its runs."""
        seeds = range(self.cfg.seed, self.cfg.seed + (self.cfg.seeds or 0))
        return [self.folder / f"seed{seed}" for seed in seeds] or [self.folder]

    @property
    def done(self) -> bool:
        return all(status(run) in DONE for run in self.runs)

    @property
    def objective(self) -> float:
        """What a search minimizes: the minimum of Val/objective, averaged over ``seeds``; inf if there is none."""
        if not self.done:
            return math.inf
        minima = [read_results(run).get("at_best_validation", {}).get("Val/objective") for run in self.runs]
        return math.inf if None in minima else sum(minima) / len(minima)

    def begun(self, since: float) -> bool:
        """Whether Hydra has written the job's configuration since that time."""
        path = self.folder / ".hydra" / "config.yaml"
        return path.is_file() and path.stat().st_mtime >= since

    def ended(self, since: float) -> bool:
        return self.done or (self.begun(since) and (self.folder / ERROR_FILE).is_file())


@dataclass
class Sweep:
    """The jobs of a multirun."""

    config: DictConfig
    jobs: dict[tuple[str, ...], Job] = field(default_factory=dict)
    skipped: set[Path] = field(default_factory=set)
    """The runs that had finished before this sweep."""
    printed: set[Path] = field(default_factory=set)
    failures: dict[Path, str] = field(default_factory=dict)
    """Why jobs of this process failed, by folder, also where there was no space to write it."""

    @property
    def name(self) -> str:
        return Path(self.config.hydra.sweep.dir).name

    def compose_job(self, overrides: Sequence[str], number: int = 0) -> Job:
        """The job for a combination of overrides.

        Raises:
            ConfigError: its folder belongs to another run.
        """
        key = tuple(overrides)
        if key not in self.jobs:
            job = Job(list(overrides), *compose_job(self.config, list(overrides), number))
            check_seeds(job.cfg)  # by which its folders are named
            same = [other for other in self.jobs.values() if other.folder == job.folder]
            if any(identity(other.cfg) != identity(job.cfg) for other in same):
                fix = "several jobs would share a folder; put ${identity:} into the name"
                raise ConfigError("hydra.sweep.subdir", job.folder.name, fix)
            for run in job.runs:
                set_aside_if_broken(job.cfg, run)
            check_same_run(job.folder, job.cfg, "hydra.sweep.dir")
            self.jobs[key] = job
            self.skipped |= {run for run in job.runs if status(run) in DONE}
        return self.jobs[key]

    def fail(self, folder: Path, reason: str) -> None:
        """Note that a job failed, and print it."""
        self.failures[folder] = reason
        sweeps.print_failure(folder, reason, None)

    def print_skipped(self) -> None:
        """Print the runs that are skipped, each once."""
        new, self.printed = self.skipped - self.printed, set(self.skipped)
        sweeps.print_skipped(new)

    def close(self) -> int:
        """Print how the runs ended; returns how many are not done."""
        outcomes = {
            run: outcome(job, run, self.failures.get(job.folder)) for job in self.jobs.values() for run in job.runs
        }
        missing = sum(state not in DONE for state, _ in outcomes.values())
        sweeps.print_counts(self.name, self.config.hydra.sweep.dir, outcomes, self.skipped)
        done = [job for job in self.jobs.values() if job.done]
        if done and "direction" in self.config.hydra.sweeper:  # a search
            best = min(done, key=lambda job: job.objective)
            overrides = [o for o in best.overrides if not o.startswith(("sweep=", "hparams_search="))]
            sweeps.print_best(len(done), best.objective, best.folder, overrides)
        sweeps.print_problems(outcomes, self.skipped, missing)
        return missing


def check_same_run(folder: Path, cfg: DictConfig, key: str) -> None:
    """Raise a ConfigError if the folder holds a run with other settings, which would be overwritten, or a link out of
    it."""
    check_links(folder, key, folder)
    if (folder / "config.yaml").is_file() and identity(read_config(folder)) != identity(cfg):
        raise ConfigError(key, folder, "holds a run with other settings; name another folder")


def status(run: Path) -> str | None:
    """The status in a run folder's results.json, or None if there is no such file or it cannot be read."""
    try:
        results = read_results(run)
    except ConfigError:
        return None
    return results and results["status"]


def outcome(job: Job, run: Path, failure: str | None = None) -> tuple[str, str | None]:
    """How a run ended, and if it failed a line that says why.

    Args:
        failure: why its job failed, if it did so in this process.
    """
    ended = status(run)
    if ended in DONE:
        return ended, None
    if ended == "failed":
        return "failed", first_line(str(read_results(run).get("error")))
    if ended == "interrupted":
        return "interrupted", "interrupted"
    files = [folder / ERROR_FILE for folder in (run, job.folder)]
    written = failure or next((file.read_text() for file in files if file.is_file()), "")
    if not written and not job.folder.is_dir():
        return "not started", None
    return "failed", first_line(written) or "did not end: it was killed, had no space left, or runs in another process"


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def run_job(cfg: DictConfig, work: Callable[[DictConfig], None]) -> float:
    """Do a run of a sweep, unless it has finished or another process runs it; returns its objective.

    If the run is one of many, a failure is recorded in its folder and does not stop the others.
    """
    folder, error_file = Path(cfg.run_dir), Path(cfg.run_dir) / ERROR_FILE
    job = Job([], cfg, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if is_worker():
        end_with_parent()
    try:
        with lock(folder):
            if job.done:
                sweeps.print_skipped([folder])
                return job.objective
            error_file.unlink(missing_ok=True)
            try:
                work(cfg)
            except Exception as error:
                full = write_failure(error, folder)
                reason = str(full) if full else first_line(f"{type(error).__name__}: {error}")
                with suppress(OSError, WriteFailed):  # where there is no space for them
                    record_failure(cfg, reason)
                    replace_text(error_file, f"{reason}\n\n{traceback.format_exc()}")
                if not is_one_of_many():
                    raise
                if current:
                    current.failures[folder] = reason
                sweeps.print_failure(folder, reason, None if full else ERROR_FILE)
    except InUse:
        sweeps.print_in_use(folder)
    return job.objective


def record_failure(cfg: DictConfig, reason: str) -> None:
    """Write a results.json for a run that failed before it could write one, so that the report lists it."""
    folder = Path(cfg.run_dir)
    if status(folder) is None and not cfg.seeds:
        replace_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        about = {"grammar": cfg.grammar.name, "model": cfg.model.name, "seed": cfg.seed}
        write_results(folder, {"status": "failed", **about, "error": reason})


def is_one_of_many() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def is_worker() -> bool:
    """Whether the process that launched the sweep started this one to do some of its runs."""
    return current is None and HydraConfig.initialized() and is_one_of_many()


class ResumingLauncher:
    """Wraps a Hydra launcher, and hands it only the jobs that are not done."""

    def __init__(self, launcher: Launcher, sweep: Sweep):
        self.launcher, self.sweep = launcher, sweep

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        jobs = [self.sweep.compose_job(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        self.sweep.print_skipped()
        left = {job.folder: job for job in jobs if not job.done}  # two jobs may be the same run
        if len(left) > 1:
            print(f"Sweep {self.sweep.name}: {len(left)} jobs to run", flush=True)
        self.launch_all(list(left.values()), initial_job_idx)
        return [returned(job) for job in jobs]

    def launch_all(self, jobs: list[Job], first: int) -> None:
        while jobs:
            beginning = time.time() - 1  # some file systems store whole seconds
            try:
                return self.launcher.launch([job.overrides for job in jobs], initial_job_idx=first)
            except Exception as error:
                # Runs do not raise, so the launcher's processes did: one may have died of one of the runs.
                left = [job for job in jobs if not (job.ended(beginning) or job.folder in self.sweep.failures)]
                begun = [job for job in left if job.begun(beginning)]
                full = write_failure(error, left[0].folder) if left else None
                if full:  # Hydra had no space for the files by which a job begins
                    self.sweep.fail(left[0].folder, str(full))
                    jobs = left[1:]
                    continue
                if not begun:
                    raise
                if jobs == begun[:1]:
                    reason = " ".join(f"{type(error).__name__}: {error}".split())
                    replace_text(jobs[0].folder / ERROR_FILE, reason)
                    return
                for job in begun:
                    self.launch_all([job], first)
                jobs = [job for job in left if job not in begun]


def returned(job: Job) -> JobReturn:
    result = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
    result.return_value = job.objective
    return result


def begin(config: DictConfig) -> Sweep:
    """Wrap the sweep's launcher, so that it gets only the jobs that are not done."""
    global current
    current = sweep = Sweep(config)
    wrap_launcher(lambda launcher: ResumingLauncher(launcher, sweep))
    # Optuna's sweeper raises it when it is imported.
    warnings.filterwarnings("ignore", "The ``declarative_base", DeprecationWarning)
    return sweep
