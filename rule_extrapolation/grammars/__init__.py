"""The languages. A new one is a file in this folder and a line in LANGUAGES.

Nothing here imports torch, so that listing names and checking a command line stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from rule_extrapolation.core import plugins
from rule_extrapolation.core.errors import ConfigError, one_of

if TYPE_CHECKING:
    from rule_extrapolation.grammars.grammar import Grammar


class Language(NamedTuple):
    """Where a language's class is, its label (an alias of its name) and the options that it adds, with their defaults.

    The path of one of ours is relative to this folder; that of another package's is absolute.
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
}

LANGUAGES = BUILT_IN | {name: Language(path) for name, path in plugins.targets(plugins.LANGUAGES).items()}
"""All languages: ours, and those that other installed packages add."""

ALIASES = {language.label: name for name, language in LANGUAGES.items() if language.label}


def target(name: str) -> str:
    """The import path of a language's class, by name or label. Raises ConfigError for an unknown one."""
    name = ALIASES.get(name, name)
    if name not in LANGUAGES:
        raise ConfigError("grammar", name, one_of(name, [*LANGUAGES, *ALIASES]))
    path = LANGUAGES[name].path
    return f"{__name__}.{path}" if name in BUILT_IN else path


def get_grammar(name: str, max_length: int, **options: Any) -> Grammar:
    """The language of that name or label.

    >>> get_grammar("L3", max_length=8).name
    'aNbN'
    """
    module, _, cls = target(name).rpartition(".")
    return getattr(import_module(module), cls)(max_length=max_length, **options)
