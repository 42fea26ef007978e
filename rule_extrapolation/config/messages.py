"""Hydra's and OmegaConf's errors as one line that names the key, its value and how to fix it."""

from __future__ import annotations

import re

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from rule_extrapolation.config.composing import groups
from rule_extrapolation.core.errors import one_of

PLUGINS = {
    ("hydra/launcher", "joblib"): "-c constraints.txt hydra-joblib-launcher",
    ("hydra/launcher", "submitit_local"): "-c constraints.txt hydra-submitit-launcher",
    ("hydra/launcher", "submitit_slurm"): "-c constraints.txt hydra-submitit-launcher",
    ("hydra/launcher", "ray"): '-e ".[ray]", in a separate environment',
    ("hydra/sweeper", "optuna"): "-c constraints.txt hydra-optuna-sweeper",
}
"""What pip has to install for Hydra to know these names."""


def one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's errors as one line with the key, its value and how to fix it."""
    if isinstance(error, MissingConfigException):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if package := PLUGINS.get((group, choice)):
            return f"{group}={choice}: needs a package: pip install {package}"
    if isinstance(error, MissingConfigException) and error.options:
        own, _, name = str(error.missing_cfg_file).partition("/")
        if own in groups():  # Hydra lists the files of the folder that a choice such as paper/aNbN is not in
            return f"{own}={name}: {one_of(name, groups()[own])}"
        return f"{group}={choice}: {one_of(choice, error.options)}"
    if unresolved := re.match(r"Error resolving interpolation '(.*)', possible interpolation keys: (.*)", str(error)):
        # A choice of the defaults list that goes by another group's.
        needed, given = re.findall(r"\$\{(\w+)\}", unresolved[1]), unresolved[2].split(", ")
        return f"{' and '.join(group for group in needed if group not in given)}=null: must be set"
    if deleted := re.match(r"Interpolation key '(.*)' not found", str(error)):
        return f"{deleted[1]}=null: must be set"
    cause = error.__cause__
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and isinstance(cause.parent_node, DictConfig):
        override = str(error).rpartition("+")[2] or cause.full_key
        keys = [str(key) for key in cause.parent_node if key != "_target_"]
        more = "; + in front adds a key that the YAML leaves out" if "." in str(cause.full_key) else ""
        known = one_of(cause.key, keys) if keys else f"{cause.full_key.rpartition('.')[0]} has none"
        return f"{override}: no such key; {known}{more}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: is not key=value as Hydra reads it; put a value with special characters in quotes"
    if isinstance(error, ConfigCompositionException) and str(error).startswith("Error merging override"):
        override = str(error).splitlines()[0].removeprefix("Error merging override ").strip()
        return f"{override}: {str(cause or error).splitlines()[0]}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; name another file or folder"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {error.msg}".splitlines()[0]
    return " ".join(str(error).split()) or repr(error)
