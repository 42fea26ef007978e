"""What other installed packages add, by entry points: their languages and their models.

A package that declares

    [project.entry-points."rule_extrapolation.languages"]
    no_repeats = "my_package.no_repeats:NoRepeats"

adds ``grammar=no_repeats``; the group ``rule_extrapolation.models`` adds ``model=...`` in the same way. Nothing of the
package is imported before it is used.
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
    """The import path of each class that a group of entry points names, by its name."""
    return {point.name: point.value.replace(":", ".") for point in sorted(entry_points(group=group))}


@cache
def conf_folders() -> dict[str, Path]:
    """The folder ``conf`` of each package with a language or a model, if it has one, by the package's name."""
    packages = sorted({path.split(".")[0] for group in (LANGUAGES, MODELS) for path in targets(group).values()})
    specs = {package: find_spec(package) for package in packages}
    folders = {name: Path(spec.origin).parent / "conf" for name, spec in specs.items() if spec and spec.origin}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}
