"""Languages and models of other installed packages, which they declare as entry points.

A package that declares

    [project.entry-points."rule_extrapolation.languages"]
    no_repeats = "my_package.no_repeats:NoRepeats"

adds ``grammar=no_repeats``; the group ``rule_extrapolation.models`` adds ``model=...`` in the same way. A package is
imported only when its language or model is used.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

LANGUAGES = "rule_extrapolation.languages"
MODELS = "rule_extrapolation.models"


@cache
def targets(group: str) -> dict[str, str]:
    """The import paths of the classes in a group of entry points, by name."""
    return {point.name: point.value.replace(":", ".") for point in sorted(entry_points(group=group))}


@cache
def conf_folders() -> dict[str, Path]:
    """The ``conf`` folders of the packages that declare a language or a model, by package."""
    packages = sorted({path.split(".")[0] for group in (LANGUAGES, MODELS) for path in targets(group).values()})
    specs = {package: find_spec(package) for package in packages}
    folders = {name: Path(spec.origin).parent / "conf" for name, spec in specs.items() if spec and spec.origin}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}
