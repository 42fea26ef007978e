"""List the languages, or check them: rule-extrapolation languages"""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated

from rule_extrapolation.cli.arguments import command
from rule_extrapolation.cli.pipes import ends_with_pipe
from rule_extrapolation.config.composing import clashes
from rule_extrapolation.core.errors import ConfigError, one_of
from rule_extrapolation.grammars import ALIASES, LANGUAGES

USAGE = """\
List the languages that grammar= takes, with their labels, rules, an example word and example prompts.

  rule-extrapolation languages
  rule-extrapolation languages check=all
  rule-extrapolation languages check=aNbN,L5"""

MAX_LENGTHS = (12, 32)
"""The max_length of the words that a check draws: one at which most words are short, and the usual one."""


@dataclasses.dataclass
class Arguments:
    check: Annotated[
        list[str] | None,
        "languages whose rules, sampler, prefixes, acceptors and probabilities shall be compared; or all",
    ] = None


def languages(arguments: Arguments) -> None:
    for clash in clashes():
        print(f"warning: {clash}", file=sys.stderr)
    from rule_extrapolation.reporting.console import plain_console
    from rule_extrapolation.reporting.terminal import print_languages

    if arguments.check is None:
        return print_languages(plain_console())
    names = [*LANGUAGES] if arguments.check == ["all"] else arguments.check
    for name in names:
        if name not in (*LANGUAGES, *ALIASES):
            raise ConfigError("check", name, one_of(name, ["all", *LANGUAGES, *ALIASES]))
    for name in names:
        check(name)


def check(name: str) -> None:
    """Check one language, and print that its parts agree.

    Raises:
        ConfigError: they do not.
    """
    from rule_extrapolation.grammars import get_grammar
    from rule_extrapolation.grammars.checking import THOROUGH, check_language

    for max_length in MAX_LENGTHS:
        grammar = get_grammar(name, max_length=max_length)
        check_language(grammar, THOROUGH)
    known = [
        part for part, has in {"acceptors": grammar.has_acceptors, "probabilities": grammar.process}.items() if has
    ]
    print(f"{grammar.name}: {', '.join(['rules', 'sampler', 'prefixes', *known])} agree", flush=True)


@ends_with_pipe
def main() -> None:
    command(languages, Arguments, USAGE)
