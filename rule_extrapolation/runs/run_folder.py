"""A run folder's config.yaml, metrics.csv, results.json and completions.csv."""

from __future__ import annotations

import csv
import json
import math
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.files import replacing
from rule_extrapolation.core.version import __version__

if TYPE_CHECKING:  # the report reads run folders without torch
    import pandas as pd

    from rule_extrapolation.core.task import Task
    from rule_extrapolation.models.language_model import LanguageModel

DONE = ("finished", "diverged")
"""The statuses of runs that have all their results."""
BROKEN = ".broken"
"""Between the name of a run folder and a number, it names a folder that was set aside since it could not be read."""
COMPLETIONS_ALONE = "loss of completions alone"
"""The caveat of runs whose loss is over completions only, not over whole words and PAD."""
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
PACKAGES = ("torch", "numba", "lightning", "hydra-core", "xlstm", "mamba-ssm")


def header(cfg: DictConfig, task: Task, model: LanguageModel, caveat: str | None) -> dict[str, Any]:
    """The part of results.json that is known when a run starts."""
    return {
        "status": "running",
        **task.about(),
        "model": cfg.model.name,
        "backend": model.backend,
        "backend_reason": model.backend_reason,
        "training": cfg.training.get("name"),
        "caveat": caveat,
        "seed": cfg.seed,
        "num_parameters": model.num_parameters,
        "baseline": model.baseline,
        "resumed_from": cfg.resume,
        "started_from": cfg.ckpt,
        "seconds": {},
        "versions": {
            "python": platform.python_version(),
            **{package: installed(package) for package in PACKAGES},
            "rule_extrapolation": __version__,
        },
        "commit": commit(),
    }


def check_free(folder: str, key: str, pattern: str = "results.json") -> None:
    """Raise a ConfigError if the folder already contains a run, which would be overwritten."""
    if any(Path(folder).glob(pattern)):
        raise ConfigError(key, folder, "already holds a run; name another folder")


def check_links(path: Path, key: str, run: Path) -> None:
    """Raise a ConfigError if what is written to a part of a run's folder, or to all of it, would land elsewhere, since
    it is a symbolic link or holds one that leads out of the folder.

    Args:
        key: the setting that names the folder.
        run: the run's folder.
    """
    for link in (path, *path.rglob("*")):
        if link != run and link.is_symlink() and run.resolve() not in link.resolve().parents:
            fix = f"its {link.relative_to(run)} is a link out of it; put what it links to in its place, or remove it"
            raise ConfigError(key, run, fix)


def installed(package: str) -> str | None:
    """The package's version, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The checkout's commit, with ``-dirty`` if files differ from it; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_results(folder: Path, results: dict[str, Any], name: str = "results.json") -> None:
    """Write results.json. Numbers that are not finite become null, since JSON has none."""
    replace_text(folder / name, json.dumps(finite(results), indent=2, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically: it is never incomplete, even if the process is killed.

    Raises:
        WriteFailed: the system cannot write it; an earlier file of that name stays.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, newline="")


def read_results(folder: Path) -> dict[str, Any] | None:
    """The content of results.json, or None if there is no such file.

    Raises:
        ConfigError: it cannot be read, or does not say how the run stands.
    """
    path = folder / "results.json"
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError("run", folder, f"{path} is no JSON: {error}; delete it, or make the run again") from error
    if not isinstance(results, dict) or not isinstance(results.get("status"), str):
        raise ConfigError("run", folder, f"{path} has no status of a run; delete it, or make the run again")
    return results


def read_metrics(folder: Path) -> pd.DataFrame:
    """metrics.csv as a long data frame: ``step``, ``epoch``, ``metric`` (the logged name) and ``value``."""
    import pandas as pd

    wide = pd.read_csv(folder / "metrics.csv")
    keys = [key for key in ("step", "epoch") if key in wide]
    long = wide.melt(keys, var_name="metric", value_name="value").dropna(subset="value")
    return long.sort_values(["step", "metric"], kind="stable", ignore_index=True)


def read_config(folder: Path) -> DictConfig:
    """A run's resolved configuration.

    Raises:
        ConfigError: config.yaml is not one, or a value is an interpolation, such as ``${oc.env:HOME}``. A run writes
            none, and somebody else's run folder must not read the environment.
    """
    path = folder / "config.yaml"
    try:
        cfg = OmegaConf.load(path)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:  # UnicodeDecodeError is a ValueError
        raise ConfigError("run", folder, f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(cfg, DictConfig) or "model" not in cfg:
        raise ConfigError("run", folder, f"{path} is not the configuration of a run")
    for key, value in strings(OmegaConf.to_container(cfg)):
        if "${" in value:
            raise ConfigError(key, value, f"{path} holds plain values only; write the value itself")
    return cfg


def strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each string of a nested mapping or list, with its dotted key."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from strings(value, f"{key}.{name}" if key else str(name))


def read_plain_config(folder: Path) -> dict[str, Any]:
    """A run's resolved configuration as a dict, which is read much faster."""
    config = yaml.load((folder / "config.yaml").read_bytes(), YAML_LOADER) or {}
    if not isinstance(config, dict):
        raise ConfigError("run", folder, f"{folder / 'config.yaml'} is not the configuration of a run")
    return config


def is_set_aside(name: str) -> bool:
    """Whether a folder of this name is one that a sweep has set aside."""
    _, found, number = name.rpartition(BROKEN)
    return bool(found) and number.isdecimal()


def finite(value: Any) -> Any:
    """Nested values with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a CSV file of at least one row, all with the same keys."""
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
