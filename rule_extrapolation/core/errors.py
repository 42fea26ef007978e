"""Errors in settings. Each is one line that names the field, its value and how to fix it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class ConfigError(ValueError):
    """An invalid setting. Its message is one line: ``field=value: fix``."""

    def __init__(self, field: str, value: Any, fix: str):
        super().__init__(f"{field}={as_written(value)}: {fix}")
        self.field, self.value, self.fix = field, value, fix


def as_written(value: Any) -> Any:
    """The value as written on the command line: null, true and false for None, True and False."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), value)


class UndefinedPrediction(ConfigError):
    """A model's logits define no probabilities of the next token."""

    def __init__(self, model: object):
        fix = "its logits are nan or infinite, and predict no token; use another checkpoint, or train with a lower lr"
        super().__init__("model", type(model).__name__, fix)


class RunsFailed(RuntimeError):
    """At least one run of a sweep or of several seeds failed. The other runs have finished."""


class WriteFailed(RuntimeError):
    """A file could not be written, as on a full disk. Its message is one line that names the file."""


def check_positive(**fields: float) -> None:
    """Raise a ConfigError for the first field that is not both positive and finite."""
    for field, value in fields.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(field, value, "must be finite" if value > 0 else "must be greater than 0")


def check_seed(**fields: int) -> None:
    """Raise a ConfigError for the first field that is not a valid seed, an integer in [0, 2^32)."""
    for field, value in fields.items():
        if not 0 <= value < 2**32:
            raise ConfigError(field, value, "must be from 0 to 2^32 - 1")


def check_fraction(**fields: float) -> None:
    """Raise a ConfigError for the first field outside [0, 1)."""
    for field, value in fields.items():
        if not 0 <= value < 1:
            raise ConfigError(field, value, "must be at least 0 and less than 1")


def check_choice(choices: Iterable[str], **fields: str) -> None:
    """Raise a ConfigError that suggests the closest choice for the first field that is not one of the choices."""
    choices = list(choices)
    for field, value in fields.items():
        if value not in choices:
            raise ConfigError(field, value, one_of(value, choices))


def one_of(value: str, choices: Iterable[str]) -> str:
    """The fix for an unknown value, which suggests the closest choice if there is one.

    >>> one_of("aNbn", ["aNbN", "baN"])
    'did you mean aNbN? (one of aNbN, baN)'
    >>> one_of("xyz", ["aNbN", "baN"])
    'must be one of aNbN, baN'
    """
    choices = list(choices)
    folded = {choice.lower(): choice for choice in choices}
    close = get_close_matches(str(value).lower(), folded, n=1, cutoff=0.5)
    listed = f"one of {', '.join(choices)}"
    return f"did you mean {folded[close[0]]}? ({listed})" if close else f"must be {listed}"
