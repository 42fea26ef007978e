"""Figures of curves: against the steps of training, and against the length of words and prompts."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rule_extrapolation.reporting.comparison import Group
from rule_extrapolation.reporting.measures import AT_MINIMUM, OOD_FINISHED, OOD_RULE_1
from rule_extrapolation.reporting.plotting import (
    MOST_LINES,
    WIDTH,
    accuracy_axis,
    by_language,
    draw_references,
    language_name,
    legend_above,
    logarithmic,
    loss_axis,
    loss_title,
    marked,
    optimum_entry,
    optimum_handle,
    panels,
    reference_handles,
    row_handles,
    say_missing,
    step_axis,
)
from rule_extrapolation.reporting.style import Look, looks

Curve = tuple[list[int], list[float]]
"""Steps or lengths, in increasing order, and values."""
MASSES = {
    "Dynamics/rules_1_and_2": ("R1 and R2", "#00204D", "-"),
    "Dynamics/rule_1_only": ("R1 only", "#31688E", "--"),
    "Dynamics/rule_2_only": ("R2 only", "#B5651D", "-."),
    "Dynamics/neither": ("neither", "#6B6B6B", (0, (4, 1, 1, 1, 1, 1))),
    "Dynamics/longer": ("longer strings", "#A8A8A8", ":"),
}


def curves_of(group: Group, name: str, entry: str | None = None) -> list[Curve]:
    """The runs' curves of that name, minus an entry of results.json unless it is None."""
    curves = []
    for run in group.runs:
        if name in run.curves:
            steps, values = run.curves[name]
            curves.append((steps, [value - run.results[entry] for value in values] if entry else values))
    return curves


def mean_curve(curves: list[Curve]) -> Curve:
    """The mean over the steps that all curves span, at each step that any of them has; between steps it is linear."""
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    steps = sorted({step for steps, _ in curves for step in steps if first <= step <= last})
    return steps, np.mean([np.interp(steps, *curve) for curve in curves], axis=0).tolist()


def draw_curves(axes: Axes, curves: list[Curve], dense: bool, **style: object) -> None:
    """A thin line for each curve, and a thick one for their mean."""
    if len(curves) > 1:
        for steps, values in curves:
            axes.plot(steps, values, **{**style, "lw": 0.5, "alpha": 0.45, "marker": ""}, rasterized=dense)
    steps, values = mean_curve(curves)
    axes.plot(steps, values, ms=3.5, markevery=max(1, len(steps) // 6), **style)


def learning_curves(groups: list[Group]) -> Figure | None:
    """Val/loss minus the optimal loss, OOD R1 over finished completions and their share, against steps, by language."""
    languages = {
        grammar: rows
        for grammar, rows in by_language(groups).items()
        if any(curves_of(group, "Val/loss") for group in rows)
    }
    if not languages:
        return None
    figure = Figure(figsize=(WIDTH, 0.5 + 1.75 * len(languages)), layout="constrained")
    grid = figure.subplots(len(languages), 3, squeeze=False)
    row_looks, dense = looks(groups), sum(len(group.runs) for group in groups) > MOST_LINES
    for (loss_axes, *rule_axes), (grammar, rows) in zip(grid, languages.items()):
        entry = optimum_entry(rows, "validation")
        curves = {group.name: curves_of(group, "Val/loss", entry) for group in rows}
        for group in rows:
            draw_row(loss_axes, curves[group.name], dense, row_looks[group.name])
        losses = {name: [value for _, values in found for value in values] for name, found in curves.items()}
        if beyond := loss_axis(loss_axes, "y", losses, rows, entry):
            loss_axes.set_title(f"{beyond} \u2191", loc="right", fontsize=6)
        loss_axes.set_ylabel(loss_title("Val/loss", entry))
        loss_axes.set_title(language_name(grammar, 60), loc="left")
        for axes, measure in zip(rule_axes, (OOD_RULE_1, OOD_FINISHED)):
            for group in rows:
                draw_row(axes, curves_of(group, f"Val/{measure.name()}"), dense, row_looks[group.name])
            is_empty = not axes.lines
            axes.set_xlim(loss_axes.get_xlim())
            draw_references(axes, rows, measure)
            accuracy_axis(axes, measure.title)
            if is_empty:
                say_missing(axes, sum(loss_axes.get_xlim()) / 2, AT_MINIMUM.missing(rows[0].runs[0].results, measure))
        for axes in (loss_axes, *rule_axes):
            step_axis(axes)
    for axes in grid[-1]:
        axes.set_xlabel("steps")
    legend_above(figure, [*row_handles(groups, lines=True), *reference_handles(), optimum_handle()])
    return figure


def draw_row(axes: Axes, curves: list[Curve], dense: bool, look: Look) -> None:
    if curves:
        draw_curves(axes, curves, dense, **marked(look), ls=look.line)


def dynamics(groups: list[Group]) -> Figure | None:
    """The probability mass of short strings by the rules that they keep, against steps, with a panel for each row."""
    shown = [group for group in groups if any(name in run.curves for run in group.runs for name in MASSES)]
    if not shown:
        return None
    figure, axes = panels(1.9, len(shown), min(3, len(shown)))
    dense = sum(len(group.runs) for group in shown) * len(MASSES) > MOST_LINES
    used = []
    for ax, group in zip(axes, shown):
        for name, (label, color, line) in MASSES.items():
            if curves := curves_of(group, name):
                draw_curves(ax, curves, dense, color=color, ls=line)
                used.append(Line2D([], [], color=color, ls=line, label=label))
        accuracy_axis(ax, "probability")
        step_axis(ax)
        ax.set_xlabel("steps")
        ax.set_title(f"{group.name}\n{language_name(group.grammar)}", loc="left")
    legend_above(figure, list({handle.get_label(): handle for handle in used}.values()))
    return figure


def lengths(groups: list[Group]) -> Figure | None:
    """Loss and accuracies against the length of words, from the latest evaluation of each run."""
    shown = [group for group in groups if any(run.lengths for run in group.runs)]
    if not shown:
        return None
    languages = by_language(shown)
    columns = {"loss": "loss per symbol", "rule_1_accuracy": "R1", "grammatical_accuracy": "grammatical"}
    figure = Figure(figsize=(WIDTH, 0.5 + 1.8 * len(languages)), layout="constrained")
    grid = figure.subplots(len(languages), len(columns), squeeze=False)
    row_looks = looks(groups)
    for row, (grammar, rows) in zip(grid, languages.items()):
        for axes, (column, title) in zip(row, columns.items()):
            for group in rows:
                draw_length_curve(axes, [run.lengths for run in group.runs], column, row_looks[group.name])
            draw_length_axis(axes, rows)
            if column == "loss":
                axes.set_ylabel(title)
                axes.set_title(language_name(grammar), loc="left")
            else:
                accuracy_axis(axes, title)
    for axes in grid[-1]:
        axes.set_xlabel("symbols")
    trained = Line2D([], [], color="black", ls=":", lw=0.8, label="longest word in training")
    legend_above(figure, [*row_handles(shown, lines=True), trained])
    return figure


def prompt_lengths(groups: list[Group]) -> Figure | None:
    """Accuracies against the length of prompts, from each run's latest evaluation with several lengths."""
    shown = [group for group in groups if any(run.prompt_lengths for run in group.runs)]
    if not shown:
        return None
    languages = by_language(shown)
    columns = {
        "ID/finished/rule_1_accuracy": "ID R1",
        "OOD/finished/rule_1_accuracy": "OOD R1",
        "OOD/finished_accuracy": "OOD finished",
    }
    figure = Figure(figsize=(WIDTH, 0.5 + 1.8 * len(languages)), layout="constrained")
    grid = figure.subplots(len(languages), len(columns), squeeze=False)
    row_looks = looks(groups)
    for row, (grammar, rows) in zip(grid, languages.items()):
        row[0].set_title(language_name(grammar), loc="left")
        for axes, (column, title) in zip(row, columns.items()):
            for group in rows:
                draw_length_curve(axes, [run.prompt_lengths for run in group.runs], column, row_looks[group.name])
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            accuracy_axis(axes, title)
    for axes in grid[-1]:
        axes.set_xlabel("prompt_length")
    legend_above(figure, row_handles(shown, lines=True))
    return figure


def draw_length_curve(axes: Axes, runs: list[list[dict[str, float]]], column: str, look: Look) -> None:
    """Draw the mean of a column over the runs that have it.

    Args:
        runs: each run's rows, one for each length.
    """
    curves = [curve for rows in runs if (curve := length_curve(rows, column))[0]]
    if curves:
        axes.plot(*mean_curve(curves), **marked(look), ls=look.line, ms=3.5)


def length_curve(rows: list[dict[str, float]], column: str) -> Curve:
    known = [(int(row["length"]), row[column]) for row in rows if column in row]
    return [length for length, _ in known], [value for _, value in known]


def draw_length_axis(axes: Axes, groups: list[Group]) -> None:
    present = sorted({int(row["length"]) for group in groups for run in group.runs for row in run.lengths})
    logarithmic(axes.set_xscale, axes.xaxis, present[0], present[-1])
    axes.set_xticks([length for length in present if present[-1] / length in (1, 2, 4, 8, 16, 32, 64)])
    for length in {run.settings.get("data.max_length") for group in groups for run in group.runs} - {None}:
        axes.axvline(length, color="black", ls=":", lw=0.8, zorder=0)
