"""Figures of the final accuracies, by language and architecture and against the loss."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rule_extrapolation.reporting.comparison import Group, average
from rule_extrapolation.reporting.measures import (
    AT_MINIMUM,
    LOSS,
    OOD_FINISHED,
    OOD_RULE_1,
    OOD_RULE_2_COMPLETION,
    OVER_TRAINING,
    Measure,
    Protocol,
)
from rule_extrapolation.reporting.plotting import (
    WIDTH,
    accuracy_axis,
    by_language,
    draw_references,
    language_name,
    legend_above,
    loss_axis,
    loss_limit,
    loss_title,
    marked,
    optimum_entry,
    optimum_handle,
    panels,
    reference_handles,
    reference_levels,
    row_handles,
    say_missing,
)
from rule_extrapolation.reporting.published import published
from rule_extrapolation.reporting.style import CHANCE, STOP, Look, looks
from rule_extrapolation.reporting.tables import published_row

MOST_MARKS = 500
"""The number of marks in a figure above which they are smaller, and drawn as pixels in the PDF and SVG too."""
SUMMARIZED = (OOD_RULE_1, OOD_RULE_2_COMPLETION, OOD_FINISHED)
BAND = 6
"""How many languages are drawn side by side."""


def summary(groups: list[Group], protocol: Protocol = AT_MINIMUM, show_published: bool = False) -> Figure | None:
    """Both OOD accuracies and the share finished, by language and row: mean, 95% interval and each run.

    Args:
        show_published: draw the published means too.
    """
    languages = list(by_language(groups).items())
    if not languages:
        return None
    bands = [languages[start : start + BAND] for start in range(0, len(languages), BAND)]
    width = min(WIDTH, max(3.4, 0.8 + 1.6 * len(bands[0])))
    figure = Figure(figsize=(width, 0.5 + 5.2 * len(bands)), layout="constrained")
    axes = figure.subplots(len(SUMMARIZED) * len(bands), 1, squeeze=False)[:, 0]
    row_looks = looks(groups)
    for i, band in enumerate(bands):
        for j, measure in enumerate(SUMMARIZED):
            ax, is_last = axes[len(SUMMARIZED) * i + j], j == len(SUMMARIZED) - 1
            draw_band(ax, band, measure, protocol, row_looks, show_published, len(bands[0]), is_last)
    handles = [*row_handles(groups), *reference_handles()]
    if show_published:
        handles.append(Line2D([], [], marker="_", ls="", color="black", ms=9, mew=1.6, label="published mean"))
    legend_above(figure, handles)
    return figure


def draw_band(
    axes: Axes,
    band: list[tuple[str, list[Group]]],
    measure: Measure,
    protocol: Protocol,
    row_looks: dict[str, Look],
    show_published: bool,
    slots: int,
    names: bool,
) -> None:
    for x in range(1, len(band)):
        axes.axvline(x - 0.5, color="#DDDDDD", lw=0.6, zorder=0)
    for x, (grammar, groups) in enumerate(band):
        width = 0.84 / max(1, len(groups))
        missing = {average(group.runs, protocol, measure).missing for group in groups}
        all_missing = len(groups) > 1 and len(missing) == 1 and None not in missing
        if all_missing:
            say_missing(axes, x, missing.pop(), rotation=0)
        offset = min(0.3 * width, 0.07 * slots / axes.figure.get_figwidth())
        for i, group in enumerate(groups):
            at = x + (i - (len(groups) - 1) / 2) * width
            ends = [at - width / 2, at + width / 2]
            for level in reference_levels([group], "stop_at_once", measure):
                axes.plot(ends, [level, level], **STOP, zorder=1.5)
            for level in reference_levels([group], "chance_levels", measure):
                axes.fill_between(ends, level - 0.008, level + 0.008, color=CHANCE, alpha=0.6, lw=0, zorder=1)
            if not all_missing:
                draw_point(axes, at, group, measure, protocol, row_looks[group.name], offset)
            if show_published:
                draw_published(axes, at, grammar, group.model, measure)
    axes.set_xlim(-0.5, slots - 0.5)
    axes.set_xticks(range(len(band)), [language_name(grammar, 17) if names else "" for grammar, _ in band])
    axes.tick_params(axis="x", length=0)
    accuracy_axis(axes, measure.title)


def draw_point(
    axes: Axes, at: float, group: Group, measure: Measure, protocol: Protocol, look: Look, offset: float
) -> None:
    cell = average(group.runs, protocol, measure)
    if cell.mean is None:
        return say_missing(axes, at, cell.missing)
    bar = None if cell.low is None else [[cell.mean - cell.low], [cell.high - cell.mean]]
    axes.errorbar(at, cell.mean, bar, **marked(look), ms=5, capsize=2, lw=0.9)
    values = [value for run in group.runs if (value := protocol.value(run.results, measure)) is not None]
    dense = len(values) > MOST_MARKS
    axes.plot([at + offset] * len(values), values, ".", color=look.color, ms=4, alpha=0.7, mew=0, rasterized=dense)


def draw_published(axes: Axes, at: float, grammar: str, model: str, measure: Measure) -> None:
    if (grammar, model) in published().index:
        cell = published_row(model, published().loc[grammar]).cells[measure.key]
        if cell.mean is not None:
            axes.plot(at, cell.mean, "_", color="black", ms=9, mew=1.6, zorder=4)


def summary_beside_published(groups: list[Group]) -> Figure | None:
    known = [group for group in groups if group.grammar in published().index]
    return summary(known, OVER_TRAINING, show_published=True)


def loss_and_rules(groups: list[Group]) -> Figure | None:
    """Each run's test loss, minus the optimal loss, against its OOD R1."""
    languages = {
        grammar: rows
        for grammar, rows in by_language(groups).items()
        if any(AT_MINIMUM.value(run.results, OOD_RULE_1) is not None for group in rows for run in group.runs)
    }
    if not languages:
        return None
    figure, axes = panels(2.2, len(languages), min(3, len(languages)))
    row_looks = looks(groups)
    dense = sum(len(group.runs) for group in groups) > MOST_MARKS
    for ax, (grammar, rows) in zip(axes, languages.items()):
        entry = optimum_entry(rows, "test")
        points = {group.name: loss_and_rule_1(group, entry) for group in rows}
        losses = {name: [x for x, _ in pairs] for name, pairs in points.items()}
        limit = loss_limit(losses, rows)
        for name, pairs in points.items():
            if not pairs:
                continue
            size = {"ms": 3, "alpha": 0.4} if dense else {"ms": 4.5, "alpha": 0.8}
            style = {**marked(row_looks[name]), **size, "rasterized": dense}
            shown = [min(x, limit) for x, _ in pairs]
            ax.plot(shown, [y for _, y in pairs], ls="", clip_on=False, **style)
        draw_references(ax, rows, OOD_RULE_1)
        beyond = loss_axis(ax, "x", losses, rows, entry)
        title = loss_title("test loss", entry)
        title += f"  ({beyond} \u2192)" if beyond else ""
        ax.set_xlabel("\n".join(filter(None, [title, not_shown(rows, points)])))
        accuracy_axis(ax, OOD_RULE_1.title)
        ax.set_title(language_name(grammar), loc="left")
    legend_above(figure, [*row_handles(groups), *reference_handles(), optimum_handle()])
    return figure


def not_shown(groups: list[Group], points: dict[str, list[tuple[float, float]]]) -> str:
    """Such as "not shown, none finished: 3 lstm", or nothing if all runs have a point."""
    missing = {group.name: n for group in groups if (n := len(group.runs) - len(points[group.name]))}
    if not missing:
        return ""
    runs = [run for group in groups for run in group.runs if AT_MINIMUM.value(run.results, OOD_RULE_1) is None]
    reasons = dict.fromkeys(AT_MINIMUM.missing(run.results, OOD_RULE_1) for run in runs)
    return f"not shown, {' or '.join(reasons)}: {', '.join(f'{n} {name}' for name, n in missing.items())}"


def loss_and_rule_1(group: Group, entry: str | None) -> list[tuple[float, float]]:
    """The runs' losses, minus the entry of results.json unless it is None, and OOD R1."""
    points = []
    for run in group.runs:
        loss, rule_1 = (AT_MINIMUM.value(run.results, measure) for measure in (LOSS, OOD_RULE_1))
        if loss is not None and rule_1 is not None:
            points.append((loss - run.results[entry] if entry else loss, rule_1))
    return points
