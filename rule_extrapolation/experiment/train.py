"""Train from Python, as ``python -m rule_extrapolation.runner`` does from the command line."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir

from rule_extrapolation.config.composing import CONF_DIR, one_line, register
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.experiment.run import run
from rule_extrapolation.experiment.trained_run import TrainedRun, load_run

register()

ALONE = {"seeds": "call train once for each seed", "sweep": "call train once for each run"}
"""What the command line makes several runs of, and what to do instead."""


def train(run_dir: str | Path, *overrides: str, quiet: bool = False) -> TrainedRun:
    """Train one run, test it and load its best checkpoint.

    >>> run = train("runs/first", "model=lstm", "grammar=L3", "trainer.max_steps=200")  # doctest: +SKIP
    >>> run.results["test"]["Test/OOD/rule_1_accuracy"]  # doctest: +SKIP

    Args:
        run_dir: the run's folder, which must not hold a run yet. All that the command line writes goes there, but
            ``.hydra/``: Hydra's own record is of a command line.
        overrides: as on the command line.
        quiet: print neither progress nor what came out.

    Raises:
        ValueError: overrides that make no configuration, in one line; a ConfigError where a setting cannot work.
    """
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose("config", list(overrides))
    except Exception as error:
        raise ValueError(one_line(error)) from error
    for key, fix in ALONE.items():
        if cfg[key] is not None:
            raise ConfigError(key, cfg[key], fix)
    cfg.run_dir = str(run_dir)
    if quiet:
        cfg.trainer.enable_progress_bar = False
    run(cfg, quiet)
    return load_run(str(run_dir))
