"""Rule extrapolation: which rules a sequence model keeps when a prompt has already broken one of them.

The names of ``__all__`` are imported when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rule_extrapolation.core.version import __version__

if TYPE_CHECKING:  # what __getattr__ imports, for type checkers and editors
    from rule_extrapolation.core.errors import ConfigError
    from rule_extrapolation.experiment.train import train
    from rule_extrapolation.experiment.trained_run import load_run
    from rule_extrapolation.grammars import get_grammar
    from rule_extrapolation.grammars.grammar import Grammar
    from rule_extrapolation.models.language_model import LanguageModel
    from rule_extrapolation.reporting.runs import read_runs

_HOMES = {
    "train": "experiment.train",
    "load_run": "experiment.trained_run",
    "read_runs": "reporting.runs",
    "get_grammar": "grammars",
    "Grammar": "grammars.grammar",
    "LanguageModel": "models.language_model",
    "ConfigError": "core.errors",
}

__all__ = ["ConfigError", "Grammar", "LanguageModel", "__version__", "get_grammar", "load_run", "read_runs", "train"]

_FORMER_COMMANDS = ("evaluate", "complete", "report", "budget", "dashboard")


class _FormerCommands(MetaPathFinder):
    """Finds the commands by their former names: python -m rule_extrapolation.evaluate and the like.

    ``runner`` is a module of its own.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != __name__ or name not in _FORMER_COMMANDS:
            return None
        return spec_from_file_location(fullname, Path(__file__).parent / "cli" / f"{name}.py")


sys.meta_path.append(_FormerCommands())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
