"""A table for each language: our figures under both protocols, the published figures, and references."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pandas as pd

from rule_extrapolation.grammars import ALIASES
from rule_extrapolation.grammars.titles import title
from rule_extrapolation.reporting.comparison import (
    ARCHITECTURES,
    Cell,
    Group,
    average,
    differing_settings,
    rank,
)
from rule_extrapolation.reporting.intervals import INTERVALS, share_interval
from rule_extrapolation.reporting.measures import (
    AT_MINIMUM,
    LOSS,
    MEASURES,
    OF_FINISHED,
    OOD_FINISHED,
    OVER_TRAINING,
    PROTOCOLS,
    Measure,
)
from rule_extrapolation.reporting.pairs import PairTable, pair_table
from rule_extrapolation.reporting.pairs import latex as pairs_latex
from rule_extrapolation.reporting.pairs import markdown as pairs_markdown
from rule_extrapolation.reporting.published import PEOPLE, SOURCE, none_finished, paper_label, people, published
from rule_extrapolation.reporting.sizes import differing_sizes
from rule_extrapolation.reporting.table_files import as_csv, as_latex, as_markdown
from rule_extrapolation.reporting.unfinished import with_references

NOT_A_MEAN = "n/a"
PUBLISHED_MAX_LENGTH = 256
CAPTION = f"{INTERVALS} Published: mean ± standard deviation over n runs, {SOURCE}. {OF_FINISHED}"
REFERENCES = (
    "stop at once: the completion that is EOS alone.",
    "chance: each token is drawn uniformly from the alphabet and EOS.",
    "optimal: the entropy of the training distribution per target position. model=oracle gives the optimal accuracies.",
)
LABELS = {name: label for label, name in ALIASES.items()}


@dataclass
class Row:
    architecture: str
    source: str
    """ours, published, stop at once, chance or optimal."""
    protocol: str
    """The protocol's title; empty for references."""
    n: int | None
    """Number of runs, or None for references."""
    cells: dict[str, Cell]
    """By the measures' keys."""
    model: str = ""
    """The architecture's name, without settings and remarks."""

    @property
    def figures(self) -> str:
        """The source and the protocol."""
        return f"{self.source}, {self.protocol}" if self.protocol else self.source

    def format_n(self) -> str:
        return NOT_A_MEAN if self.n is None else str(self.n)

    def strings(self) -> list[str]:
        """The cells in the order of HEADER."""
        cells = [format_cell(self.cells[measure.key], measure, self.n) for measure in MEASURES]
        return [self.architecture, self.figures, self.format_n(), *cells]

    def mean_strings(self) -> list[str]:
        """Architecture, n and means alone."""
        means = [format_cell(self.cells[measure.key], measure, None) for measure in MEASURES]
        return [self.architecture, self.format_n(), *means]

    def numbers(self) -> list[float | None]:
        """The numbers in ``strings``, without the two columns of words."""
        return [self.n, *(self.cells[measure.key].mean for measure in MEASURES)]


@dataclass
class LanguageTable:
    grammar: str
    rows: list[Row]
    notes: list[str]
    rules: dict[str, str] = field(default_factory=dict)
    pairs: PairTable | None = None
    sizes: str | None = None
    """The note that architectures differ in size, None if they do not."""

    @property
    def title(self) -> str:
        return language_title(self.grammar)

    def published_label(self) -> str:
        return paper_label(self.grammar) or "not in the paper"


def language_title(grammar: str) -> str:
    """The name with both labels, such as "parentheses_and_brackets (L5; L4 in the paper)"."""
    label, paper = LABELS.get(grammar), paper_label(grammar)
    if label and label == paper:
        return f"{grammar} ({label}, as in the paper)"
    labels = "; ".join(filter(None, [label, paper and f"{paper} in the paper"]))
    return f"{grammar} ({labels})" if labels else grammar


def language_tables(groups: list[Group], by: Iterable[str] = ()) -> list[LanguageTable]:
    grammars = dict.fromkeys(group.grammar for group in groups)
    return [language_table([group for group in groups if group.grammar == name], list(by)) for name in grammars]


def language_table(groups: list[Group], by: list[str]) -> LanguageTable:
    """The table of a language from its groups."""
    grammar = groups[0].grammar
    published_figures = published().loc[grammar] if grammar in published().index else published().iloc[:0]
    baselines = {group.model for group in groups if group.baseline}
    models = sorted(
        {group.model for group in groups} | set(published_figures.index),
        key=lambda name: (name in baselines, rank(name, ARCHITECTURES)),
    )
    rows = []
    for model in models:
        ours = [group for group in groups if group.model == model]
        for group in ours:
            for protocol in PROTOCOLS:
                cells = {measure.key: average(group.runs, protocol, measure) for measure in MEASURES}
                rows.append(Row(group.title, "ours", protocol.title, len(group.runs), cells, model))
        if not ours:
            rows.append(Row(model, "ours", "both protocols", 0, missing_cells("not run"), model))
        if model not in baselines:
            rows.append(published_row(model, published_figures))
    if (figures := people(grammar)) is not None:
        rows.append(Row(PEOPLE, "published", "", int(figures["n_runs"]), published_cells(figures), PEOPLE))
    averaged = [group for group in groups if group.runs]
    referred = averaged or list(filter(None, [with_references(groups[0])]))
    rows += [
        *reference_rows("stop at once", stop_cells, referred),
        *reference_rows("chance", chance_cells, referred),
        *reference_rows("optimal", optimal_cells, referred),
    ]
    rules = next((run.results["rules"] for group in referred for run in group.runs if run.results.get("rules")), {})
    pairs = pair_table(averaged, language_title(grammar)) if averaged else None
    return LanguageTable(grammar, rows, table_notes(groups, by), rules, pairs, sizes_note(groups))


def missing_cells(reason: str) -> dict[str, Cell]:
    return {measure.key: Cell(missing=reason) for measure in MEASURES}


def published_row(model: str, figures: pd.DataFrame) -> Row:
    """The published figures of a model, out of those of a language."""
    if model not in figures.index:
        return Row(model, "published", "", 0, missing_cells("not published"), model)
    line = figures.loc[model]
    return Row(model, "published", OVER_TRAINING.title, int(line["n_runs"]), published_cells(line), model)


def published_cells(line: pd.Series) -> dict[str, Cell]:
    """The cells of a row of published_results.csv, where an empty field is read as nan."""
    cells = {}
    for measure in MEASURES:
        mean, std = line.get(f"{measure.key}_mean", math.nan), line.get(f"{measure.key}_std", math.nan)
        if math.isnan(mean):
            cells[measure.key] = Cell(missing="not published")
        elif none_finished(line, measure.prompts) and measure is not OOD_FINISHED:
            cells[measure.key] = Cell(missing="none finished")
        else:
            cells[measure.key] = Cell(float(mean), None if math.isnan(std) else float(std), int(line["n_runs"]))
    return cells


# References


def chance_cells(group: Group) -> dict[str, Cell]:
    return level_cells(group, "chance_levels", "not known")


def stop_cells(group: Group) -> dict[str, Cell]:
    return level_cells(group, "stop_at_once", "not logged")


def level_cells(group: Group, entry: str, unknown: str) -> dict[str, Cell]:
    """The accuracies of a reference, from its entry in results.json."""
    results = group.runs[0].results
    cells = {LOSS.key: Cell(missing="not defined")}
    for measure in MEASURES[1:]:
        level = reference_level(results, entry, measure)
        missing = AT_MINIMUM.missing(results, measure)
        lacks = missing.startswith("no ")
        cells[measure.key] = Cell(missing=missing if lacks else unknown) if level is None else Cell(level)
    return cells


def reference_level(results: dict[str, Any], entry: str, measure: Measure) -> float | None:
    """A reference's accuracy over finished completions, None if results.json has none."""
    return (results.get(entry) or {}).get(measure.name())


def optimal_cells(group: Group) -> dict[str, Cell]:
    optimal = group.runs[0].results.get("optimal_loss")
    loss = Cell(missing="not known") if optimal is None else Cell(optimal)
    return missing_cells("see oracle") | {LOSS.key: loss}


def reference_rows(source: str, cells_of: Callable[[Group], dict[str, Cell]], groups: list[Group]) -> list[Row]:
    """One row if the cells are the same for all groups, otherwise one for each value that names its groups."""
    found: dict[tuple, tuple[dict[str, Cell], list[Group]]] = {}
    for group in groups:
        cells = cells_of(group)
        key = tuple(None if cell.mean is None else round(cell.mean, 3) for cell in cells.values())
        found.setdefault(key, (cells, []))[1].append(group)
    rows = []
    for cells, owners in found.values():
        names = ", ".join(group.name for group in owners)
        rows.append(Row(source if len(found) == 1 else f"{source} ({names})", source, "", None, cells))
    return rows


# Notes


def table_notes(groups: list[Group], by: list[str]) -> list[str]:
    notes = [*(f"{protocol.title}: {protocol.meaning}." for protocol in PROTOCOLS), *REFERENCES]
    if weights := [f"{group.name} {weights_of(group)}" for group in groups if group.runs]:
        notes.append(f"Trainable weights: {'; '.join(weights)}.")
    notes += filter(None, [sizes_note(groups)])
    notes += group_notes(groups)
    lengths = {run.settings.get("data.max_length") for group in groups for run in group.runs} - {PUBLISHED_MAX_LENGTH}
    if lengths and paper_label(groups[0].grammar):
        ours = ", ".join(map(str, sorted(lengths, key=str)))
        notes.append(
            f"Words have up to {ours} symbols in these runs, up to {PUBLISHED_MAX_LENGTH} in the published ones."
        )
    return [*notes, *difference_notes(groups, by)]


def group_notes(groups: list[Group]) -> list[str]:
    """Notes on several commits, quirks, runs that are not averaged, and averages over several configurations."""
    notes = []
    commits = {run.results.get("commit") for group in groups for run in group.runs} - {None}
    if len(commits) > 1:
        listed = ", ".join(sorted(commit[:8] for commit in commits))
        notes.append(f"The runs are of {len(commits)} commits: {listed}.")
    for group in groups:
        if group.is_named_by_quirks and group.caveat:
            notes.append(f"{group.name}: {group.caveat}.")
        if group.excluded:
            total = len(group.excluded) + len(group.runs)
            reasons = Counter(run.problem.partition(":")[0] for run in group.excluded)
            listed = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
            notes.append(f"{group.name}: {len(group.excluded)} of {total} runs not averaged: {listed}.")
        if group.configurations > 1:
            notes.append(f"{group.name}: averages over {group.configurations} configurations (mix=true).")
    return notes


def difference_notes(groups: list[Group], by: list[str]) -> list[str]:
    """Notes on the settings besides the model's and those of ``by`` in which rows differ."""
    notes = []
    for key, values in differing_settings(groups).items():
        if key not in by:
            listed = "; ".join(f"{value} for {', '.join(names)}" for value, names in values.items())
            notes.append(f"Rows differ in {key}: {listed}.")
    return notes


def sizes_note(groups: list[Group]) -> str | None:
    """The line on rows that differ in size, None if they do not. Baselines do not count."""
    trained = [(group, run) for group in groups if not group.baseline for run in group.runs]
    sizes = [(number, group.name) for group, run in trained if (number := run.results.get("num_parameters"))]
    return differing_sizes(sizes)


def weights_of(group: Group) -> str:
    numbers = {run.results.get("num_parameters") for run in group.runs}
    return " or ".join("not known" if number is None else f"{number:,}" for number in sorted(numbers, key=str))


# Formatting


def format_cell(cell: Cell, measure: Measure, n: int | None) -> str:
    """Such as "0.657 [0.31, 1.00] (2 of 3)", if fewer than ``n`` runs have the figure.

    If ``n`` is None, it is the mean alone. Published figures have a standard deviation in place of the interval.
    """
    if cell.mean is None:
        return str(cell.missing)
    digits = 4 if measure is LOSS else 3
    string = f"{cell.mean:.{digits}f}"
    if n is None:
        return string
    if cell.low is not None:
        string += (
            f" [{cell.low:.4f}, {cell.high:.4f}]" if measure is LOSS else f" {share_interval(cell.low, cell.high)}"
        )
    elif cell.std is not None:
        string += f" ± {cell.std:.{digits}f}"
    if cell.n < n:
        string += f" ({cell.n} of {n})"
    elif cell.n == 1:
        string += " (one run)"
    return string


HEADER = ["architecture", "figures", "n", *(measure.title for measure in MEASURES)]


def files(table: LanguageTable) -> dict[str, str]:
    """The table's files by their ending. Markdown and LaTeX have the pairs of architectures below it."""
    words = {"md": markdown(table), "tex": latex(table)}
    if table.pairs:
        words["md"] += "\n" + pairs_markdown(table.pairs)
        words["tex"] += "\n" + pairs_latex(table.pairs)
    return words | {"csv": as_csv(csv_rows(table))}


def markdown(table: LanguageTable) -> str:
    rows = [row.strings() for row in table.rows]
    return as_markdown(table.title, HEADER, rows, CAPTION, table.notes, word_columns=2, subtitle=rules_line(table))


def rules_line(table: LanguageTable) -> str:
    return ", ".join(f"{title(rule)}: {meaning}" for rule, meaning in table.rules.items())


def latex(table: LanguageTable) -> str:
    """The table in LaTeX, with the protocols as (a) and (b), which the caption explains."""
    letters = dict(zip((protocol.title for protocol in PROTOCOLS), "ab"))
    meanings = [f"({letters[protocol.title]}) {protocol.title}: {protocol.meaning}." for protocol in PROTOCOLS]
    others = table.notes[len(PROTOCOLS) :]
    words = [table.title, rules_line(table), CAPTION]
    caption = " ".join([". ".join(filter(None, words)), *meanings, *others])

    def strings(row: Row) -> list[str]:
        name, figures, *cells = row.strings()
        return [name, f"{row.source} ({letters[row.protocol]})" if row.protocol in letters else figures, *cells]

    blocks = (map(strings, rows) for _, rows in groupby(table.rows, lambda row: row.model))
    header = [title.replace("completion", "compl.") for title in HEADER]
    return as_latex(table.grammar, caption, header, blocks, word_columns=2, wide=True)


def csv_rows(table: LanguageTable) -> list[dict[str, Any]]:
    rows = []
    for row in table.rows:
        line: dict[str, Any] = {
            "grammar": table.grammar,
            "label": LABELS.get(table.grammar, "none"),
            "paper_label": table.published_label(),
            "architecture": row.architecture,
            "source": row.source,
            "protocol": row.protocol or "none",
            "n": row.format_n(),
        }
        for measure in MEASURES:
            cell = row.cells[measure.key]
            single = NOT_A_MEAN if row.n is None else "one run"
            no_interval = NOT_A_MEAN if row.n is None else "not published" if row.source == "published" else "not known"
            figures = {"mean": (cell.mean, ""), "low": (cell.low, no_interval), "high": (cell.high, no_interval)}
            figures["std"] = (cell.std, single)
            for key, (value, otherwise) in figures.items():
                reason = cell.missing if cell.mean is None else otherwise
                line[f"{measure.key}_{key}"] = reason if value is None else value
            line[f"{measure.key}_n"] = NOT_A_MEAN if row.n is None else cell.n
        rows.append(line)
    return rows
