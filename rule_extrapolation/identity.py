"""What makes two runs the same run: all that their results depend on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

PLACES = ("hydra", "run_dir", "sweep", "logger", "threads")
WITHOUT_EFFECT = {
    "trainer": (
        *("accelerator", "strategy", "devices", "num_nodes"),
        *("enable_progress_bar", "enable_model_summary", "plugins", "profiler"),
    ),
    "callbacks": ("progress",),
    "model": ("search",),
}


def identity(cfg: DictConfig) -> str:
    """8 hex digits of the resolved configuration, without where the run lies and is logged, what it shows on the
    terminal, and on how many devices of what kind it runs."""
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in ("hydra", "logger")])
    place = cfg.get("run_dir") if not OmegaConf.is_interpolation(cfg, "run_dir") else None
    with open_dict(cfg):
        cfg.run_dir = place or ""
    settings = OmegaConf.to_container(cfg, resolve=True)
    settings = {key: value for key, value in settings.items() if key not in PLACES}
    for group, keys in WITHOUT_EFFECT.items():
        settings[group] = {key: value for key, value in settings[group].items() if key not in keys}
    text = json.dumps(elsewhere(settings, place), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def elsewhere(value: Any, place: str | None) -> Any:
    """The same without the run's own folder in front of paths."""
    if isinstance(value, dict):
        return {key: elsewhere(item, place) for key, item in value.items()}
    if isinstance(value, list):
        return [elsewhere(item, place) for item in value]
    return value.removeprefix(place) if place and isinstance(value, str) else value
