"""A table for each text and level: perplexities by architecture, at the checkpoint with the lowest validation loss."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from rule_extrapolation.reporting.comparison import Group
from rule_extrapolation.reporting.measures import unigram_figures
from rule_extrapolation.reporting.table_files import as_csv, as_latex, as_markdown
from rule_extrapolation.reporting.tables import difference_notes, group_notes

MEASURES = {
    "test loss": "loss",
    "perplexity": "perplexity",
    "bits per character": "bits_per_character",
    "accuracy": "accuracy",
}
HEADER = ["architecture", "n", *MEASURES, "weights"]


@dataclass
class TextRow:
    architecture: str
    n: int | None
    """Number of runs, or None for the unigram model."""
    means: list[float | None]
    """In the order of MEASURES."""
    stds: list[float | None]
    weights: int | None = None
    model: str = ""
    source: str = "ours"

    def strings(self) -> list[str]:
        """The cells in the order of HEADER."""
        cells = [format_cell(mean, std) for mean, std in zip(self.means, self.stds)]
        weights = "-" if self.weights is None else f"{self.weights:,}"
        return [self.architecture, "-" if self.n is None else str(self.n), *cells, weights]

    def numbers(self) -> list[float | None]:
        """The numbers in ``strings``, without the architecture."""
        return [self.n, *self.means, self.weights]


@dataclass
class TextTable:
    grammar: str
    """The text's name and level."""
    rows: list[TextRow]
    notes: list[str]

    @property
    def title(self) -> str:
        name, _, level = self.grammar.rpartition("_")
        return f"{name}, by {level}"


def text_tables(groups: list[Group], by: list[str]) -> list[TextTable]:
    names = dict.fromkeys(group.grammar for group in groups)
    return [text_table([group for group in groups if group.grammar == name], by) for name in names]


def text_table(groups: list[Group], by: list[str]) -> TextTable:
    """The table of a text from its groups."""
    rows = [text_row(group) for group in sorted(groups, key=lambda group: group.baseline)]
    notes = [*group_notes(groups), *difference_notes(groups, by)]
    known = [run for group in groups for run in group.runs]
    if known:
        means = [*unigram_figures(known[0].results), None]  # without its accuracy
        rows.append(TextRow("unigram", None, means, [None] * len(means), source="unigram"))
        notes.append("unigram: a model that knows only the frequency of each token in the training part.")
        part = known[0].results["text"]["parts"]["test"]
        if part["unknown"]:
            share = part["unknown"] / part["tokens"]
            notes.append(f"{share:.1%} of the test part's tokens are <UNK>, which is predicted like any other token.")
    return TextTable(groups[0].grammar, rows, notes)


def text_row(group: Group) -> TextRow:
    figures = [[run.results["test"].get(f"Test/{key}") for run in group.runs] for key in MEASURES.values()]
    known = [[value for value in values if value is not None] for values in figures]
    means = [statistics.fmean(values) if values else None for values in known]
    stds = [statistics.stdev(values) if len(values) > 1 else None for values in known]
    weights = group.runs[0].results.get("num_parameters") if group.runs else None
    return TextRow(group.title, len(group.runs), means, stds, weights, group.model)


def format_cell(mean: float | None, std: float | None) -> str:
    if mean is None or not math.isfinite(mean):
        return "-"
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def files(table: TextTable) -> dict[str, str]:
    """The table's files by their ending."""
    return {"md": markdown(table), "tex": latex(table), "csv": as_csv(csv_rows(table))}


def markdown(table: TextTable) -> str:
    remark = "Mean ± standard deviation over n runs, each at its checkpoint with the lowest validation loss."
    return as_markdown(table.title, HEADER, [row.strings() for row in table.rows], remark, table.notes)


def latex(table: TextTable) -> str:
    caption = " ".join([f"{table.title}: mean ± standard deviation over n runs.", *table.notes])
    return as_latex(table.grammar, caption, HEADER, [[row.strings() for row in table.rows]])


def csv_rows(table: TextTable) -> list[dict[str, Any]]:
    rows = []
    for row in table.rows:
        line: dict[str, Any] = {
            "text": table.title,
            "architecture": row.architecture,
            "n": row.n,
            "weights": row.weights,
        }
        for key, mean, std in zip(MEASURES.values(), row.means, row.stds):
            line |= {f"{key}_mean": mean, f"{key}_std": std}
        rows.append({key: "none" if value is None else value for key, value in line.items()})
    return rows
