"""List the languages: rule-extrapolation languages"""

from __future__ import annotations

import sys

from rule_extrapolation.cli.pipes import ends_with_pipe
from rule_extrapolation.config.composing import clashes

USAGE = """\
List the languages that grammar= takes, with their labels, rules, an example word and example prompts.

  rule-extrapolation languages"""


@ends_with_pipe
def main() -> None:
    if {"--help", "-h"} & set(sys.argv[1:]):
        return print(USAGE)
    if sys.argv[1:]:
        print(f"error: {sys.argv[1]}: languages takes no arguments", file=sys.stderr)
        sys.exit(2)
    for clash in clashes():
        print(f"warning: {clash}", file=sys.stderr)
    from rich.console import Console

    from rule_extrapolation.reporting.terminal import print_languages

    print_languages(Console())
