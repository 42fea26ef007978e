"""A table for each language: our figures under both protocols, the published figures, chance and the optimal loss."""

from __future__ import annotations

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
from rule_extrapolation.reporting.measures import LOSS, MEASURES, OVER_TRAINING, PROTOCOLS, Measure, Protocol
from rule_extrapolation.reporting.published import SOURCE, paper_label, published
from rule_extrapolation.reporting.table_files import as_csv, as_latex, as_markdown

NOT_A_MEAN = "n/a"
OF_ALL, OF_FINISHED = "over all completions", "over finished completions"
PUBLISHED_MAX_LENGTH = 256
REFERENCES = (
    "chance: each token is drawn uniformly from the alphabet and EOS.",
    "optimal: the entropy of the training distribution per target position. model=oracle gives the optimal accuracies.",
)
LABELS = {name: label for label, name in ALIASES.items()}


@dataclass
class Row:
    architecture: str
    source: str
    """ours, published, chance or optimal."""
    protocol: str
    """The protocol's title. For chance and optimum, which completions the row is about; empty for both protocols."""
    n: int | None
    """Number of runs, or None for chance and the optimum."""
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

    @property
    def title(self) -> str:
        """The name with both labels, such as "parentheses_and_brackets (L5; L4 in the paper)"."""
        label, paper = LABELS.get(self.grammar), paper_label(self.grammar)
        if label and label == paper:
            return f"{self.grammar} ({label}, as in the paper)"
        labels = "; ".join(filter(None, [label, paper and f"{paper} in the paper"]))
        return f"{self.grammar} ({labels})" if labels else self.grammar

    def published_label(self) -> str:
        return paper_label(self.grammar) or "not in the paper"


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
    averaged = [group for group in groups if group.runs]
    rows += [
        *reference_rows("chance", chance_cells, averaged),
        *reference_rows("optimal", optimal_cells, averaged),
    ]
    rules = next((run.results["rules"] for group in averaged for run in group.runs if run.results.get("rules")), {})
    return LanguageTable(grammar, rows, table_notes(groups, by), rules)


def missing_cells(reason: str) -> dict[str, Cell]:
    return {measure.key: Cell(missing=reason) for measure in MEASURES}


def published_row(model: str, figures: pd.DataFrame) -> Row:
    """The published figures of a model, out of those of a language."""
    if model not in figures.index:
        return Row(model, "published", "", 0, missing_cells("not published"), model)
    line = figures.loc[model]
    n = int(line["n_runs"])
    cells = {}
    for measure in MEASURES:
        mean, std = line[f"{measure.key}_mean"], line[f"{measure.key}_std"]
        known = mean == mean  # an empty field is read as nan
        cells[measure.key] = (
            Cell(float(mean), float(std) if std == std else None, n) if known else Cell(missing="not published")
        )
    return Row(model, "published", OVER_TRAINING.title, n, cells, model)


# References


def chance_cells(group: Group, protocol: Protocol) -> dict[str, Cell]:
    levels = group.runs[0].results.get("chance_levels") or {}
    cells = {LOSS.key: Cell(missing="not defined")}
    for measure in MEASURES[1:]:
        level = levels.get(measure.name(protocol.finished))
        missing = protocol.missing(group.runs[0].results, measure)
        cells[measure.key] = (
            Cell(missing="not known" if missing == "not logged" else missing) if level is None else Cell(level)
        )
    return cells


def optimal_cells(group: Group, protocol: Protocol) -> dict[str, Cell]:
    optimal = group.runs[0].results.get("optimal_loss")
    loss = Cell(missing="not known") if optimal is None else Cell(optimal)
    return missing_cells("see oracle") | {LOSS.key: loss}


def reference_rows(
    source: str, cells_of: Callable[[Group, Protocol], dict[str, Cell]], groups: list[Group]
) -> list[Row]:
    """One row if the cells are the same for all groups and protocols, otherwise one for each value that names its
    groups."""
    found: dict[tuple, tuple[dict[str, Cell], list[tuple[Group, Protocol]]]] = {}
    for protocol in PROTOCOLS:
        for group in groups:
            cells = cells_of(group, protocol)
            key = tuple(None if cell.mean is None else round(cell.mean, 3) for cell in cells.values())
            found.setdefault(key, (cells, []))[1].append((group, protocol))
    rows = []
    for cells, owners in found.values():
        names = dict.fromkeys(group.name for group, _ in owners)
        finished = {protocol.finished for _, protocol in owners}
        name = source if len(names) == len({group.name for group in groups}) else f"{source} ({', '.join(names)})"
        subset = "" if len(finished) > 1 else OF_FINISHED if finished.pop() else OF_ALL
        rows.append(Row(name, source, subset, None, cells))
    return rows


# Notes


def table_notes(groups: list[Group], by: list[str]) -> list[str]:
    notes = [*(f"{protocol.title}: {protocol.meaning}." for protocol in PROTOCOLS), *REFERENCES]
    if weights := [f"{group.name} {weights_of(group)}" for group in groups if group.runs]:
        notes.append(f"Trainable weights: {'; '.join(weights)}.")
    notes += group_notes(groups)
    lengths = {run.settings.get("data.max_length") for group in groups for run in group.runs} - {PUBLISHED_MAX_LENGTH}
    if lengths and paper_label(groups[0].grammar):
        ours = ", ".join(map(str, sorted(lengths, key=str)))
        notes.append(
            f"Words have up to {ours} symbols in these runs, up to {PUBLISHED_MAX_LENGTH} in the published ones."
        )
    return [*notes, *difference_notes(groups, by)]


def group_notes(groups: list[Group]) -> list[str]:
    """Notes on several commits, on runs that are not averaged, and on averages over several configurations."""
    notes = []
    commits = {run.results.get("commit") for group in groups for run in group.runs} - {None}
    if len(commits) > 1:
        listed = ", ".join(sorted(commit[:8] for commit in commits))
        notes.append(f"The runs are of {len(commits)} commits: {listed}.")
    for group in groups:
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


def weights_of(group: Group) -> str:
    numbers = {run.results.get("num_parameters") for run in group.runs}
    return " or ".join("not known" if number is None else f"{number:,}" for number in sorted(numbers, key=str))


# Formatting


def format_cell(cell: Cell, measure: Measure, n: int | None) -> str:
    """Such as "0.657 ± 0.162 (2 of 3)", if fewer than ``n`` runs have the figure. If ``n`` is None, the mean alone."""
    if cell.mean is None:
        return str(cell.missing)
    digits = 4 if measure is LOSS else 3
    string = f"{cell.mean:.{digits}f}"
    if n is None:
        return string
    if cell.std is not None:
        string += f" ± {cell.std:.{digits}f}"
    if cell.n < n:
        string += f" ({cell.n} of {n})"
    elif cell.std is None:
        string += " (one run)"
    return string


HEADER = ["architecture", "figures", "n", *(measure.title for measure in MEASURES)]


def files(table: LanguageTable) -> dict[str, str]:
    """The table's files by their ending."""
    return {"md": markdown(table), "tex": latex(table), "csv": as_csv(csv_rows(table))}


def markdown(table: LanguageTable) -> str:
    remark = f"Mean ± standard deviation over n runs. Published: {SOURCE}."
    rows = [row.strings() for row in table.rows]
    return as_markdown(table.title, HEADER, rows, remark, table.notes, word_columns=2, subtitle=rules_line(table))


def rules_line(table: LanguageTable) -> str:
    return ", ".join(f"{title(rule)}: {meaning}" for rule, meaning in table.rules.items())


def latex(table: LanguageTable) -> str:
    """The table in LaTeX, with the protocols as (a) and (b), which the caption explains."""
    letters = dict(zip((protocol.title for protocol in PROTOCOLS), "ab"))
    meanings = [f"({letters[protocol.title]}) {protocol.title}: {protocol.meaning}." for protocol in PROTOCOLS]
    others = table.notes[len(PROTOCOLS) :]
    words = [table.title, rules_line(table), "Mean ± standard deviation over n runs."]
    caption = " ".join([". ".join(filter(None, words)), *meanings, *others, f"Published: {SOURCE}."])

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
            line[f"{measure.key}_mean"] = cell.missing if cell.mean is None else cell.mean
            line[f"{measure.key}_std"] = cell.missing if cell.mean is None else single if cell.std is None else cell.std
            line[f"{measure.key}_n"] = NOT_A_MEAN if row.n is None else cell.n
        rows.append(line)
    return rows
