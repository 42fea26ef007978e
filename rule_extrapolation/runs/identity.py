"""What makes two runs the same run: all that their results depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from rule_extrapolation.core.errors import ConfigError

WITHOUT_EFFECT = (
    *("hydra", "run_dir", "sweep", "logger", "threads"),
    *("trainer.accelerator", "trainer.strategy", "trainer.devices", "trainer.num_nodes"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.plugins", "trainer.profiler"),
    *("callbacks.progress", "model.search", "model.depth_key", "model.width_key", "data.cache"),
)
"""Keys, with all below them, that say where a run lies and is logged, what it shows on the terminal, on how many
devices of what kind it runs, and how it is searched for."""


def set_depth_and_width(cfg: DictConfig) -> DictConfig:
    """The configuration with ``depth`` and ``width`` in the keys that its model has for them.

    Raises:
        ConfigError: the model has no such key.
    """
    cfg = cfg.copy()
    for key in ("depth", "width"):
        if cfg[key] is not None:
            name = cfg.model.get(f"{key}_key")
            if name is None:
                raise ConfigError(key, cfg[key], f"{cfg.model.get('name')} has no {key} to set; leave it out")
            cfg.model[name] = cfg[key]
    return cfg


def identity(cfg: DictConfig) -> str:
    """8 hex digits of the resolved configuration, without what has no effect on the results."""
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in ("hydra", "logger")])
    place = cfg.get("run_dir") if not OmegaConf.is_interpolation(cfg, "run_dir") else None
    with open_dict(cfg):
        cfg.run_dir = place or ""
    settings = OmegaConf.to_container(cfg, resolve=True)
    for key in ("depth", "width"):  # the same run as one that sets the model's own key
        name, value = settings["model"].get(f"{key}_key"), settings.pop(key, None)
        if name is not None and value is not None:
            settings["model"][name] = value
    settings = without(settings, WITHOUT_EFFECT)
    text = json.dumps(elsewhere(settings, place), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def without(settings: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The settings less those keys, in which dots lead from group to group."""
    here = {key for key in keys if "." not in key}
    kept = {key: value for key, value in settings.items() if key not in here}
    for group, value in kept.items():
        below = [key.removeprefix(f"{group}.") for key in keys if key.startswith(f"{group}.")]
        if below and isinstance(value, dict):
            kept[group] = without(value, below)
    return kept


def elsewhere(value: Any, place: str | None) -> Any:
    """The same without the run's own folder in front of paths."""
    if isinstance(value, dict):
        return {key: elsewhere(item, place) for key, item in value.items()}
    if isinstance(value, list):
        return [elsewhere(item, place) for item in value]
    return value.removeprefix(place) if place and isinstance(value, str) else value
