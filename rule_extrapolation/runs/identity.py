"""The identity of a run: everything that its results depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

QUIRKS = "quirks"
"""The key that names a set of settings of other keys."""
WITHOUT_EFFECT = (
    *("hydra", "run_dir", "sweep", "logger", "threads"),
    *("trainer.accelerator", "trainer.strategy", "trainer.devices", "trainer.num_nodes"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.plugins", "trainer.profiler"),
    *("callbacks.progress", "model.search", "model.depth_key", "model.width_key", "data.cache"),
)
"""Keys without effect on the results, each with all keys below it: where a run is stored and logged, what it shows on
the terminal, the devices that it runs on, and the ranges that a search would draw from."""


def identity(cfg: DictConfig) -> str:
    """8 hex digits that identify the resolved configuration, without the keys that have no effect on the results."""
    # quirks is a name for settings of other keys, which earlier runs did not record.
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in ("hydra", "logger", QUIRKS)])
    run_dir = cfg.get("run_dir") if not OmegaConf.is_interpolation(cfg, "run_dir") else None
    with open_dict(cfg):
        cfg.run_dir = run_dir or ""
    settings = OmegaConf.to_container(cfg, resolve=True)
    for key in ("depth", "width"):  # the same run as one that sets the model's own key
        name, value = settings["model"].get(f"{key}_key"), settings.pop(key, None)
        if name is not None and value is not None:
            settings["model"][name] = value
    if settings.get("optimizer", {}).get("decay") == "all":
        del settings["optimizer"]["decay"]  # as in earlier runs, which did not record it
    settings = without(settings, WITHOUT_EFFECT)
    text = json.dumps(relative_to(settings, run_dir), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def without(settings: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Nested settings without these keys, which are dotted, such as optimizer.lr."""
    top_level = {key for key in keys if "." not in key}
    kept = {key: value for key, value in settings.items() if key not in top_level}
    for group, value in kept.items():
        below = [key.removeprefix(f"{group}.") for key in keys if key.startswith(f"{group}.")]
        if below and isinstance(value, dict):
            kept[group] = without(value, below)
    return kept


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys, such as optimizer.lr; an empty group stays a value."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def relative_to(value: Any, run_dir: str | None) -> Any:
    """Nested settings without the run's folder in front of paths."""
    if isinstance(value, dict):
        return {key: relative_to(item, run_dir) for key, item in value.items()}
    if isinstance(value, list):
        return [relative_to(item, run_dir) for item in value]
    return value.removeprefix(run_dir) if run_dir and isinstance(value, str) else value
