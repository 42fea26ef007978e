"""Print a report's tables, and what has been written."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rule_extrapolation.reporting.figures import KINDS
from rule_extrapolation.reporting.measures import AT_MINIMUM, LOSS, MEASURES
from rule_extrapolation.reporting.page import count_in_words
from rule_extrapolation.reporting.runs import RunRecord
from rule_extrapolation.reporting.tables import LanguageTable
from rule_extrapolation.reporting.text_tables import HEADER, TextTable


def print_tables(console: Console, tables: list[LanguageTable]) -> None:
    """Print the tables in short: our means at minimum validation loss, and the references."""
    for table in tables:
        caption = f"means {AT_MINIMUM.title}, over finished completions"
        shown = Table(title=table.title, caption=caption, box=SIMPLE_HEAD, padding=0)
        shown.add_column("architecture", overflow="fold", min_width=12)
        for title in ("n", *(measure.title for measure in MEASURES)):
            shown.add_column(short(title), justify="right", max_width=8 if title == LOSS.title else 6)
        ours = [row for row in table.rows if row.source == "ours" and row.protocol == AT_MINIMUM.title]
        references = [row for row in table.rows if row.n is None]
        for i, row in enumerate(ours):
            shown.add_row(*map(short, row.mean_strings()), end_section=i == len(ours) - 1)
        for row in references:
            shown.add_row(*map(short, row.mean_strings()), style="dim")
        console.print(shown)
        if table.sizes:
            console.print(table.sizes, style="yellow", highlight=False, soft_wrap=True)


def short(words: str) -> str:
    """Abbreviated, so that the tables fit into 80 columns."""
    shorter = {"finished": "fin.", "completion": "compl.", "repaired": "rep.", "not defined": "-", " prompts": ""}
    for word, letters in shorter.items():
        words = words.replace(word, letters)
    return words


def print_text_tables(console: Console, tables: list[TextTable]) -> None:
    for table in tables:
        shown = Table(title=table.title, caption="at minimum validation loss", box=SIMPLE_HEAD, padding=0)
        for title in HEADER:
            shown.add_column(title, justify="left" if title == HEADER[0] else "right")
        for row in table.rows:
            shown.add_row(*row.strings(), style="dim" if row.n is None else None)
        console.print(shown)


def print_end(
    console: Console,
    runs: list[RunRecord],
    left_out: dict[str, str],
    out: Path,
    tables: list[str],
    figures: list[str],
) -> None:
    """How many runs there were, which are not averaged, and what has been written."""
    options = {"soft_wrap": True, "highlight": False, "markup": False}
    console.print(count_in_words(runs), **options)
    excluded = [run for run in runs if run.problem is not None]
    for run in excluded[:10]:
        console.print(f"not averaged: {run.source}: {run.problem}", style="yellow", **options)
    if len(excluded) > 10:
        console.print(
            f"not averaged: {len(excluded) - 10} more, see the page or tables/runs.csv", style="yellow", **options
        )
    for name, reason in left_out.items():
        console.print(f"no figure of {KINDS[name].title}: {reason}", style="yellow", **options)
    across = {"all.csv", "comparisons.csv", "overview.md", "published.csv", "runs.csv"}
    more = sorted(across & {path.name for path in (out / "tables").iterdir()})
    console.print(f"Tables: {out}/tables/ (.md, .tex and .csv of {', '.join(tables)}; {', '.join(more)})", **options)
    if figures:
        console.print(f"Figures: {out}/figures/ (.pdf, .svg and .png of {', '.join(figures)})", **options)
    console.print(f"Page: {out}/report.html", **options)
