"""The keys ``depth`` and ``width``, which set a model's own keys for them."""

from __future__ import annotations

from omegaconf import DictConfig

from rule_extrapolation.core.errors import ConfigError


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
