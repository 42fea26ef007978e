"""Print the results of a run on a text, and continuations of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rule_extrapolation.reporting.measures import unigram_figures
from rule_extrapolation.reporting.terminal import figure, model_title, print_end_of_run

if TYPE_CHECKING:
    from rule_extrapolation.data.text_data import TextTask

EXAMPLES = 2
SHOWN_CHARACTERS = 200
"""How many characters of a completion are printed."""


def print_text_run(
    console: Console, task: TextTask, results: dict[str, Any], rows: list[dict[str, Any]], folder: Path
) -> None:
    """Print loss, perplexity and bits per character on the test part, those of the unigram model, some completions, and
    the run folder."""
    part = results["text"]["parts"]["test"]
    caption = f"on the {part['tokens']:,} {task.vocabulary.level.unit} of the test part"
    table = Table(title=model_title(results), caption=caption)
    for column in ("", "loss", "perplexity", "bits per character", "accuracy"):
        table.add_column(column, justify="right" if column else "left")
    test = results["test"]
    losses = [test[f"Test/{name}"] for name in ("loss", "perplexity", "bits_per_character")]
    table.add_row("test", *(f"{loss:.4f}" for loss in losses), figure(test["Test/accuracy"]), end_section=True)
    table.add_row("  unigram", *(f"{loss:.4f}" for loss in unigram_figures(results)), "", style="dim")
    console.print(table)
    if part["unknown"]:
        console.print(f"{part['unknown'] / part['tokens']:.1%} of them are <UNK>.", highlight=False)
    console.print("Stretches of the test part | completions:")
    for row in rows[:EXAMPLES]:
        completion = row["completion"][:SHOWN_CHARACTERS]
        line = Text.assemble((one_line(row["prompt"]), "dim"), "|", (one_line(completion), "bold"))
        console.print(line, soft_wrap=True)
    print_end_of_run(console, results, folder)


def one_line(text: str) -> str:
    """The text with a visible sign for each character that would move the cursor.

    >>> one_line("a\\tb\\n")
    'a⇥b⏎'
    """
    signs = {"\n": "⏎", "\t": "⇥"}
    return "".join(signs.get(c) or (c if c.isprintable() else "�") for c in text)


def visible(text: str) -> str:
    """The same, but for line ends."""
    return "\n".join(map(one_line, text.split("\n")))


def print_continuations(
    console: Console, prompt: str, unknown: list[str], likely: dict[str, float], rows: list[tuple[str, str]]
) -> None:
    """Print the most likely next tokens with their probabilities, and continuations with the name of their decoding."""
    if unknown:
        words = ", ".join(dict.fromkeys(map(repr, unknown)))
        console.print(Text(f"not in the vocabulary, read as <UNK>: {words}", "yellow"), soft_wrap=True)
    listed = "  ".join(f"{token!r} {probability:.3f}" for token, probability in likely.items())
    console.print(Text.assemble("next    ", (listed, "bold")), soft_wrap=True)
    for name, completion in rows:
        shown = (visible(prompt), "dim"), "|", (visible(completion), "bold")
        console.print(Text.assemble(f"{name:8}", *shown), soft_wrap=True)
