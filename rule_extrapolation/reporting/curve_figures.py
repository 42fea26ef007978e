"""Figures of curves: against the steps of training, and against the length of words and prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rule_extrapolation.grammars.titles import title
from rule_extrapolation.reporting.comparison import Group
from rule_extrapolation.reporting.measures import AT_MINIMUM, OOD_FINISHED, ood_rule, ood_rules
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
from rule_extrapolation.reporting.runs import DYNAMICS
from rule_extrapolation.reporting.style import Look, looks

Curve = tuple[list[int], list[float]]
"""Steps or lengths, in increasing order, and values."""
RULES_1_AND_2 = f"{DYNAMICS}rules_1_and_2"
NEITHER = (f"{DYNAMICS}neither", "neither", "#6B6B6B", (0, (4, 1, 1, 1, 1, 1)))
LONGER = (f"{DYNAMICS}longer", "longer strings", "#A8A8A8", ":")
"""Logged name, label, colour and line of the masses of strings that keep no rule, and of the rest."""
BOTH = ("#00204D", "-")
ONLY = (("#31688E", "--"), ("#B5651D", "-."))
"""Colours and lines of the masses of strings that keep both rules, and one of them."""


def curves_of(group: Group, name: str, entry: str | None = None) -> list[Curve]:
    """The runs' curves of that name, minus an entry of results.json unless it is None."""
    curves = []
    for run in group.runs:
        if name in run.curves:
            steps, values = run.curves[name]
            curves.append((steps, [value - run.results[entry] for value in values] if entry else values))
    return curves


def masses(group: Group) -> list[tuple[str, str, str, object]]:
    """The names that a group's dynamics are logged by, each with a label, a colour and a line.

    They are of strings that keep both rules, one of them, and neither, and of longer strings.
    """
    names = {name for run in group.runs for name in run.curves if name.startswith(DYNAMICS)}
    only = sorted(name for name in names if name.endswith("_only"))
    both = names - {*only, NEITHER[0], LONGER[0]}
    styled = [(name, *BOTH) for name in both] + [(name, *look) for name, look in zip(only, ONLY)]
    return [(name, mass_label(name), *look) for name, *look in styled] + [
        entry for entry in (NEITHER, LONGER) if entry[0] in names
    ]


def mass_label(name: str) -> str:
    """The label of a mass.

    >>> [mass_label(f"Dynamics/{name}") for name in ("rules_1_and_2", "rule_1_only", "even_length_and_nested")]
    ['R1 and R2', 'R1 only', 'even length and nested']
    """
    return "R1 and R2" if name == RULES_1_AND_2 else title(name.removeprefix(DYNAMICS))


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
    """Val/loss minus the optimal loss, OOD accuracies over finished completions and their share, against steps.

    Each language has a row, with a panel for each of its ``ood_rules``.
    """
    languages = {
        grammar: rows
        for grammar, rows in by_language(groups).items()
        if any(curves_of(group, "Val/loss") for group in rows)
    }
    if not languages:
        return None
    figure = Figure(figsize=(WIDTH, 0.5 + 1.75 * len(languages)), layout="constrained")
    measures = {
        grammar: [*map(ood_rule, dict.fromkeys(rule for group in rows for rule in rules_of(group))), OOD_FINISHED]
        for grammar, rows in languages.items()
    }
    grid = figure.subplots(len(languages), 1 + max(map(len, measures.values())), squeeze=False)
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
        for axes in rule_axes[len(measures[grammar]) :]:
            axes.set_axis_off()
        for axes, measure in zip(rule_axes, measures[grammar]):
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


def rules_of(group: Group) -> list[str]:
    return ood_rules(group.runs[0].results) if group.runs else []


def draw_row(axes: Axes, curves: list[Curve], dense: bool, look: Look) -> None:
    if curves:
        draw_curves(axes, curves, dense, **marked(look), ls=look.line)


def dynamics(groups: list[Group]) -> Figure | None:
    """The probability mass of short strings by the rules that they keep, against steps, with a panel for each row."""
    shown = [group for group in groups if masses(group)]
    if not shown:
        return None
    figure, axes = panels(1.9, len(shown), min(3, len(shown)))
    dense = sum(len(group.runs) * len(masses(group)) for group in shown) > MOST_LINES
    used = []
    for ax, group in zip(axes, shown):
        for name, label, color, line in masses(group):
            draw_curves(ax, curves_of(group, name), dense, color=color, ls=line)
            used.append(Line2D([], [], color=color, ls=line, label=label))
        accuracy_axis(ax, "probability")
        step_axis(ax)
        ax.set_xlabel("steps")
        ax.set_title(f"{group.name}\n{language_name(group.grammar)}", loc="left")
    legend_above(figure, list({handle.get_label(): handle for handle in used}.values()))
    return figure


def lengths(groups: list[Group]) -> Figure | None:
    """Loss and accuracies against the length of words, from the latest evaluation of each run.

    Each language has a row, with a panel for each of its ``ood_rules``.
    """
    shown = [group for group in groups if any(run.lengths for run in group.runs)]
    if not shown:
        return None
    languages = by_language(shown)
    columns = {
        grammar: ["loss", *(f"{rule}_accuracy" for rule in rules_of(rows[0])), "grammatical_accuracy"]
        for grammar, rows in languages.items()
    }
    figure = Figure(figsize=(WIDTH, 0.5 + 1.8 * len(languages)), layout="constrained")
    grid = figure.subplots(len(languages), max(map(len, columns.values())), squeeze=False)
    row_looks = looks(groups)
    for row, (grammar, rows) in zip(grid, languages.items()):
        for axes in row[len(columns[grammar]) :]:
            axes.set_axis_off()
        for axes, column in zip(row, columns[grammar]):
            for group in rows:
                draw_length_curve(axes, [run.lengths for run in group.runs], column, row_looks[group.name])
            draw_length_axis(axes, rows)
            if column == "loss":
                axes.set_ylabel("loss per symbol")
                axes.set_title(language_name(grammar), loc="left")
            else:
                accuracy_axis(axes, title(column.removesuffix("_accuracy")))
    for axes in grid[-1]:
        axes.set_xlabel("symbols")
    trained = Line2D([], [], color="black", ls=":", lw=0.8, label="longest word in training")
    legend_above(figure, [*row_handles(shown, lines=True), trained])
    return figure


def prompt_lengths(groups: list[Group]) -> Figure | None:
    """Accuracies against the length of prompts, from each run's latest evaluation with several lengths.

    Each language has a row, with two panels for each of its ``ood_rules``.
    """
    shown = [group for group in groups if any(run.prompt_lengths for run in group.runs)]
    if not shown:
        return None
    languages = by_language(shown)
    measures = {
        grammar: [
            *(replace(ood_rule(rule), prompts=prompts) for prompts in ("ID", "OOD") for rule in rules_of(rows[0])),
            OOD_FINISHED,
        ]
        for grammar, rows in languages.items()
    }
    figure = Figure(figsize=(WIDTH, 0.5 + 1.8 * len(languages)), layout="constrained")
    grid = figure.subplots(len(languages), max(map(len, measures.values())), squeeze=False)
    row_looks = looks(groups)
    for row, (grammar, rows) in zip(grid, languages.items()):
        row[0].set_title(language_name(grammar), loc="left")
        for axes in row[len(measures[grammar]) :]:
            axes.set_axis_off()
        for axes, measure in zip(row, measures[grammar]):
            for group in rows:
                curves = [run.prompt_lengths for run in group.runs]
                draw_length_curve(axes, curves, measure.name(), row_looks[group.name])
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            accuracy_axis(axes, f"{measure.prompts} {title(measure.metric)}")
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
