"""What may be built from a run folder. Its config.yaml may be of anybody's writing, and a ``_target_`` names any code.

Allowed are the classes that the YAML files of this package and of installed plugins name, each in its own group, and
the languages and models that they register. The names are compared as text, before anything is imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from rule_extrapolation.config.composing import CONF_DIR, OUR_MODELS
from rule_extrapolation.core import plugins
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.grammars import LANGUAGES, target
from rule_extrapolation.runs.run_folder import YAML_LOADER

BUILT = ("grammar", "data", "model", "decoding")
"""The groups that a trained run is loaded from. No other group of its config.yaml is ever built."""


def check_targets(cfg: DictConfig, own: Collection[str] = ()) -> None:
    """Check that a run folder's configuration builds nothing but known classes, without importing any.

    Args:
        own: import paths of classes that are allowed too, those of the caller's own objects.

    Raises:
        ConfigError: naming the key and its value, at any depth of a group that is built.
    """
    settings = OmegaConf.to_container(cfg)
    for group in BUILT:
        for key, path in targets(settings.get(group), group):
            if path is not None and not (isinstance(path, str) and path in {*known(group), *own}):
                fix = "pass --trust-run (in Python trust_run=True) if you trust the run's author"
                raise ConfigError(key, path, f"is no {group} of this package or of an installed one; {fix}")


def targets(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Each ``_target_`` of a nested mapping or list, with its dotted key."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "_target_":
                yield f"{key}.{name}", value
            yield from targets(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from targets(value, f"{key}[{index}]")


@cache
def known(group: str) -> frozenset[str]:
    """The import paths that a group may name."""
    confs = (CONF_DIR, *plugins.conf_folders().values())
    files = [file for conf in confs for file in (conf / group).rglob("*.yaml")]
    named = [path for file in files for _, path in targets(yaml.load(file.read_bytes(), YAML_LOADER), group)]
    if group == "grammar":
        named += map(target, LANGUAGES)
    if group == "model":
        named += plugins.targets(plugins.MODELS, OUR_MODELS).values()
    return frozenset(path for path in named if path is not None)
