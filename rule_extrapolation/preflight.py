"""Checks a command line before Hydra makes a folder for it."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict

from rule_extrapolation.config import one_line
from rule_extrapolation.distributed import is_follower
from rule_extrapolation.errors import check_free
from rule_extrapolation.outline import check_outlines

if TYPE_CHECKING:
    from rule_extrapolation.experiment import Experiment


class Preflight(Callback):
    """A Hydra callback that assembles every job without weights, and exits with one line where one cannot work."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with failing_in_one_line():
            [experiment] = check([config])
            if experiment.world.rank:
                return self.use_no_folder(config)
            check_free(config.hydra.run.dir, "hydra.run.dir", "*/results.json" if config.seeds else "results.json")

    def use_no_folder(self, config: DictConfig) -> None:
        """Where torchrun or srun starts a run's processes, each would make a folder of its own."""
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with flag_override(config, ["readonly", "struct"], False):
            config.hydra.run.dir, config.hydra.output_subdir = folder, None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with failing_in_one_line():
            self.check_jobs(config)

    def check_jobs(self, config: DictConfig) -> None:
        overrides = list(config.hydra.overrides.task)
        parsed = OverridesParser.create().parse_overrides(overrides)
        if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
            # Other sweepers choose as they go; what they leave alone can be checked.
            jobs = [[o.input_line for o in parsed if not o.is_sweep_override()]]
        else:
            [jobs] = BasicSweeper.split_arguments(parsed, None)
        check([compose(config.hydra.job.config_name, overrides=[*job]) for job in jobs])
        check_free(config.hydra.sweep.dir, "hydra.sweep.dir", "*/results.json")


def check(configs: list[DictConfig]) -> list[Experiment]:
    """Assemble them without weights."""
    configs = [without_hydra(config) for config in configs]
    for cfg in configs:
        check_outlines(cfg)
    # torch and Lightning take seconds to import: not before all that needs neither has been checked.
    from rule_extrapolation.experiment import assemble

    return [assemble(cfg, device="meta") for cfg in configs]


def without_hydra(config: DictConfig) -> DictConfig:
    cfg = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    if OmegaConf.is_interpolation(cfg, "run_dir"):
        with open_dict(cfg):
            cfg.run_dir = ""  # Hydra has yet to make it
    return cfg


@contextmanager
def failing_in_one_line() -> Iterator[None]:
    # Whatever it is that goes wrong: Hydra would make a warning of the exception and start the run.
    try:
        yield
    except Exception as error:
        fail(one_line(error))


def fail(message: str) -> None:
    if is_follower():
        time.sleep(3)  # the first process says the same: whoever ends before it may end it too, as torchrun has it
    else:
        print(f"error: {message}", file=sys.stderr)
    # Hydra swallows exceptions from callbacks, but not an exit.
    raise SystemExit(2)
