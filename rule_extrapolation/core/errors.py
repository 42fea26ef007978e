"""One way to say that a setting cannot work: the field, its value and what to do about it, on one line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A setting that cannot work. Its message is one line: ``field=value: fix``."""

    def __init__(self, field: str, value: Any, fix: str):
        super().__init__(f"{field}={as_written(value)}: {fix}")
        self.field, self.value, self.fix = field, value, fix


def as_written(value: Any) -> Any:
    """A value as one writes it on the command line."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), value)


class RunsFailed(RuntimeError):
    """Some of several runs have failed; the others have come to their end."""


def check_positive(**fields: float) -> None:
    """Raise a ConfigError for the first field that is not above zero, or not finite."""
    for field, value in fields.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(field, value, "must be finite" if value > 0 else "must be greater than 0")


def check_seed(**fields: int) -> None:
    """Raise a ConfigError for the first field that no random generator takes as its seed."""
    for field, value in fields.items():
        if not 0 <= value < 2**32:
            raise ConfigError(field, value, "must be from 0 to 2^32 - 1")


def check_fraction(**fields: float) -> None:
    """Raise a ConfigError for the first field outside [0, 1)."""
    for field, value in fields.items():
        if not 0 <= value < 1:
            raise ConfigError(field, value, "must be at least 0 and less than 1")


def check_free(folder: str, key: str, pattern: str = "results.json") -> None:
    """Raise a ConfigError if the folder holds a run, which would be lost."""
    if any(Path(folder).glob(pattern)):
        raise ConfigError(key, folder, "holds a run already; name another folder")


def check_text(path: str | None) -> None:
    """Raise a ConfigError if a path is given that is no text file, as far as its beginning says."""
    if path is None:
        return
    file = Path(path)
    if not file.is_file():
        fix = "is a folder; name a text file" if file.is_dir() else "there is no such file; name a text file"
        raise ConfigError("path", path, fix)
    try:
        with file.open("rb") as opened:
            beginning = opened.read(2**16)
    except OSError as error:
        raise ConfigError("path", path, f"cannot be read: {error.strerror}") from error
    if not beginning.strip():
        raise ConfigError("path", path, "is empty; name a file with text in it")
    if b"\0" in beginning:
        raise ConfigError("path", path, "is no text: it holds NUL bytes; name a UTF-8 file")


def check_choice(choices: Iterable[str], **fields: str) -> None:
    """Raise a ConfigError, with the closest choice, for the first field that is none of the choices."""
    choices = list(choices)
    for field, value in fields.items():
        if value not in choices:
            raise ConfigError(field, value, one_of(value, choices))


def one_of(value: str, choices: Iterable[str]) -> str:
    """'did you mean aNbN? (one of aNbN, aNbM, ...)', the first half only where something is close."""
    choices = list(choices)
    folded = {choice.lower(): choice for choice in choices}
    close = get_close_matches(str(value).lower(), folded, n=1, cutoff=0.5)
    listed = f"one of {', '.join(choices)}"
    return f"did you mean {folded[close[0]]}? ({listed})" if close else f"must be {listed}"
