"""The command line: rule-extrapolation <command>, or python -m rule_extrapolation <command>."""

from __future__ import annotations

import sys
from importlib import import_module

from rule_extrapolation import __version__
from rule_extrapolation.cli.pipes import ends_with_pipe
from rule_extrapolation.core.errors import one_of

COMMANDS = {
    "train": "train a model on a language or a text, and show which rules its completions keep",
    "evaluate": "test a trained model on longer words, longer prompts or sampled completions",
    "complete": "complete prompts with a trained model",
    "report": "compare runs: tables, figures and a page",
    "budget": "find the width at which a model has a given number of weights",
    "dashboard": "make a W&B view of many runs",
    "languages": "list the languages, with their rules and examples",
}

USAGE = """\
Train sequence models on formal languages and measure which rules their completions keep.

  rule-extrapolation <command> [key=value ...]
  rule-extrapolation <command> --help
  rule-extrapolation --version

Commands:"""


@ends_with_pipe
def main() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        width = max(map(len, COMMANDS))
        return print(USAGE, *(f"  {command:{width}}  {does}" for command, does in COMMANDS.items()), sep="\n")
    if name == "--version":
        return print(f"rule_extrapolation {__version__}")
    if name not in COMMANDS:
        print(f"error: {name}: no such command; {one_of(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [sys.argv[0], *arguments]
    import_module(f"rule_extrapolation.cli.{name}").main()


if __name__ == "__main__":
    main()
