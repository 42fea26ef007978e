"""Languages and models of other installed packages, which they declare as entry points.

A package that declares

    [project.entry-points."rule_extrapolation.languages"]
    no_repeats = "my_package.no_repeats:NoRepeats"

adds ``grammar=no_repeats``; the group ``rule_extrapolation.models`` adds ``model=...`` in the same way. A package is
imported only when its language or model is used. A name that is taken already, by one of ours or by another package,
is left out.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

LANGUAGES = "rule_extrapolation.languages"
MODELS = "rule_extrapolation.models"


@cache
def declared(group: str) -> list[EntryPoint]:
    """The entry points of a group, sorted by name."""
    return sorted(entry_points(group=group))


def targets(group: str, taken: Collection[str]) -> dict[str, str]:
    """The import paths of the classes in a group of entry points, by name, without the names that are taken."""
    paths: dict[str, str] = {}
    for point in declared(group):
        if point.name not in taken:
            paths.setdefault(point.name, point.value.replace(":", "."))
    return paths


def clashes(group: str, taken: Collection[str]) -> list[str]:
    """A line for each entry point of a group that is left out since its name is taken."""
    used = targets(group, taken)
    return [
        f"{group}: {point.name} = {point.value} is left out, the name is taken"
        for point in declared(group)
        if used.get(point.name) != point.value.replace(":", ".")
    ]


@cache
def conf_folders() -> dict[str, Path]:
    """The ``conf`` folders of the packages that declare a language or a model, by package."""
    packages = sorted({point.value.partition(".")[0] for group in (LANGUAGES, MODELS) for point in declared(group)})
    folders: dict[str, Path] = {}
    for name in packages:
        spec = find_spec(name)
        # A package without __init__.py may have several places, and a module has none.
        for place in (spec and spec.submodule_search_locations) or ():
            if (folder := Path(place) / "conf").is_dir():
                folders.setdefault(name, folder)
    return folders
