"""All that this package takes of Hydra beyond its public interface, known to work with hydra-core 1.3.8.

Hydra has no public way to compose the jobs of a sweep before they are launched, or to wrap the launcher that the user
has chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict


def sweep_overrides(config: DictConfig) -> list[Any]:
    """The parsed overrides of a multirun, those of its sweeper's ``params`` first."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    return OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])


def jobs_of(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job of a multirun, or None where its sweeper chooses them as it goes."""
    if not config.hydra.sweeper._target_.endswith(BasicSweeper.__name__):
        return None
    [jobs] = BasicSweeper.split_arguments(sweep_overrides(config), None)
    return jobs


def compose_job(config: DictConfig, overrides: list[str], number: int) -> tuple[DictConfig, Path]:
    """The configuration and the folder that Hydra will give a job of a multirun."""
    cfg = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
    with open_dict(cfg):
        cfg.hydra.job.id = cfg.hydra.job.num = number
    outer = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)  # the folder's name may refer to it
    try:
        return cfg, Path(cfg.hydra.sweep.dir, str(cfg.hydra.sweep.subdir)).absolute()
    finally:
        HydraConfig.instance().cfg = outer


def wrap_launcher(wrap: Callable[[Launcher], Any]) -> None:
    """Have the launcher that a sweeper asks Hydra for wrapped."""
    plugins = Plugins.instance()
    original = partial(Plugins.instantiate_launcher, plugins)
    plugins.instantiate_launcher = lambda **arguments: wrap(original(**arguments))
