"""The registry of languages. A new language is a file in this folder and a line in BUILT_IN.

This module does not import torch, so that listing names and checking a command line stay fast.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from rule_extrapolation.core import plugins
from rule_extrapolation.core.errors import ConfigError, one_of

if TYPE_CHECKING:
    from rule_extrapolation.grammars.grammar import Grammar


class Language(NamedTuple):
    """An entry of the registry.

    Args:
        path: module and class, within ``rule_extrapolation.grammars`` for the built-in languages, else absolute.
        label: a short alias of the name, such as L3.
        options: the arguments of the class in addition to Grammar's own, with their defaults.
    """

    path: str
    label: str | None = None
    options: dict[str, Any] = {}


BUILT_IN = {
    "baN": Language("ban.BaN", "L1"),
    "bbaN": Language("bban.BbaN", "L2"),
    "aNbN": Language("anbn.AnBn", "L3", {"all_sequences": True, "only_even": False, "only_odd": False}),
    "aNbNcN": Language("anbncn.AnBnCn", "L4", {"all_sequences": True}),
    "parentheses_and_brackets": Language("parentheses_and_brackets.ParenthesesAndBrackets", "L5"),
    "not_nested_parentheses_and_brackets": Language(
        "not_nested_parentheses_and_brackets.NotNestedParenthesesAndBrackets", "L6"
    ),
    "abN": Language("abn.AbN"),
    "aNbM": Language("anbm.AnBm"),
    "aNbNaN": Language("anbnan.AnBnAn"),
    "parentheses": Language("parentheses.Parentheses"),
    "brackets": Language("brackets.Brackets"),
    "separated_brackets_and_parentheses": Language(
        "separated_brackets_and_parentheses.SeparatedBracketsAndParentheses"
    ),
    "parity": Language("word_problems.Parity"),
    "S3": Language("word_problems.S3"),
    "S5": Language("word_problems.S5"),
    "A5": Language("word_problems.A5"),
    "Z60": Language("word_problems.Z60"),
    "modular_arithmetic": Language("modular_arithmetic.ModularArithmetic"),
    "majority": Language("majority.Majority"),
    "first_symbol": Language("first_symbol.FirstSymbol"),
    "ww": Language("copies.WW"),
    "wwR": Language("copies.WWReversed"),
}

ALIASES = {language.label: name for name, language in BUILT_IN.items() if language.label}

TAKEN = {*BUILT_IN, *ALIASES}
"""The names that another package cannot give a language."""

LANGUAGES = BUILT_IN | {name: Language(path) for name, path in plugins.targets(plugins.LANGUAGES, TAKEN).items()}
"""All languages: ours, and those that other installed packages add."""


def target(name: str) -> str:
    """The import path of a language's class, by name or label.

    Raises:
        ConfigError: an unknown name.
    """
    name = ALIASES.get(name, name)
    if name not in LANGUAGES:
        raise ConfigError("grammar", name, one_of(name, [*LANGUAGES, *ALIASES]))
    path = LANGUAGES[name].path
    return f"{__name__}.{path}" if name in BUILT_IN else path


def language_class(name: str) -> type[Grammar]:
    """The class of the language with this name or label.

    Raises:
        ConfigError: an unknown name, or an entry point that cannot be imported.
    """
    path = target(name)
    module, _, cls = path.rpartition(".")
    try:
        return getattr(import_module(module), cls)
    except (ImportError, AttributeError) as error:
        raise ConfigError("grammar", name, f"{path} cannot be imported: {error}") from error


def get_grammar(name: str, max_length: int | None = None, **options: Any) -> Grammar:
    """The language with this name or label.

    Args:
        max_length: the maximum number of symbols in a training word. It is needed.
        options: further arguments of the language's class, such as ``test_prompt_length``.

    Raises:
        ConfigError: an unknown name, no ``max_length``, or an option that the language does not have or rejects.

    >>> get_grammar("L3", max_length=8).name
    'aNbN'
    """
    make = language_class(name)
    parameters = inspect.signature(make).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key, value in options.items():
        if key not in parameters and not takes_any:
            raise ConfigError(key, value, f"no such option; {one_of(key, parameters)}")
    if max_length is None:
        raise ConfigError("max_length", None, "is needed: the maximum number of symbols in a training word")
    return make(max_length=max_length, **options)
