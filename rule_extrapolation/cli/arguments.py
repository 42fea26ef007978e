"""``key=value`` arguments of the commands other than ``train``, which uses Hydra.

A command declares its arguments as a dataclass of ints, floats, strings, bools and lists, each annotated with its
meaning. Values are taken literally, since a prompt such as ``([`` is not YAML.
"""

from __future__ import annotations

import os
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from rule_extrapolation.cli.preflight import fail
from rule_extrapolation.config.messages import one_line
from rule_extrapolation.core.errors import ConfigError, WriteFailed, check_choice, one_of
from rule_extrapolation.core.files import expand_home, write_failure

Arguments = TypeVar("Arguments")
TRUST_RUN = "true, or --trust-run: build whatever class the run names, which can run any code"
"""The meaning of the argument ``trust_run`` of the commands that load a run."""


def parse(cls: type[Arguments], words: list[str]) -> Arguments:
    """Parse the words of a command line into the dataclass.

    Raises:
        ConfigError: a key that is unknown, has no value or is given twice; a value of the wrong type; or a missing one.
    """
    known, hints = meanings(cls), typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = (flags(cls)[word], "=", "true") if word in flags(cls) else word.partition("=")
        if not equals and key not in known:
            example = f"{next(iter(known))}={'...' if word.startswith('-') else word}"
            raise ConfigError("arguments", word, f"settings are key=value; write {example}")
        if key not in known:
            raise ConfigError(key, text, f"no such key; {one_of(key, known)}")
        if not equals:
            raise ConfigError(key, text, f"needs a value: {known[key]}")
        if key in values:
            raise ConfigError(key, text, "is given twice; give it once")
        values[key] = convert(key, expand_home(text), hints[key])
    for field in fields(cls):
        if field.name not in values and field.default is MISSING:
            raise ConfigError(field.name, None, f"must be set: {known[field.name]}")
    return cls(**values)


def convert(key: str, text: str, hint: Any) -> Any:
    """Convert text to what a hint asks for: a type, a list of it, or either of them or None."""
    if hint is bool:
        check_choice(("true", "false"), **{key: text})
        return text == "true"
    if isinstance(hint, types.UnionType):
        [hint] = [option for option in typing.get_args(hint) if option is not type(None)]
    element = typing.get_args(hint)[0] if typing.get_origin(hint) is list else None
    try:
        return hint(text) if element is None else [element(part) for part in text.split(",")]
    except ValueError as error:
        wanted = hint.__name__ if element is None else f"{element.__name__}s separated by commas"
        raise ConfigError(key, text, f"must be {wanted}") from error


def meanings(cls: type) -> dict[str, str]:
    """The meaning of each argument."""
    return {key: hint.__metadata__[0] for key, hint in typing.get_type_hints(cls, include_extras=True).items()}


def flags(cls: type) -> dict[str, str]:
    """The arguments that a flag such as --trust-run sets to true, by flag."""
    return {f"--{key.replace('_', '-')}": key for key, hint in typing.get_type_hints(cls).items() if hint is bool}


def help_text(cls: type, usage: str) -> str:
    """The usage, and each argument with its default and meaning."""
    defaults = ["" if field.default in (MISSING, None) else field.default for field in fields(cls)]
    defaults = [str(default).lower() if isinstance(default, bool) else default for default in defaults]
    settings = [f"{key}={default}" for key, default in zip(meanings(cls), defaults)]
    width = max(map(len, settings))
    lines = [f"  {setting:{width}}  {meaning}" for setting, meaning in zip(settings, meanings(cls).values())]
    return "\n".join([usage, "", *lines])


def command(run: Callable[[Any], None], cls: type, usage: str) -> None:
    """Parse the arguments and run a command. Bad ones give one line on stderr and exit status 2."""
    words = sys.argv[1:]
    if {"--help", "-h"} & set(words):
        return print(help_text(cls, usage))
    # Before torch is imported; cli/train.py says why.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        run(parse(cls, words))
    except KeyboardInterrupt:
        sys.exit(130)
    except ConfigError as error:
        fail(one_line(error))
    except (OSError, WriteFailed) as error:
        if full := write_failure(error, "a file"):
            fail(str(full), status=1)
        raise
