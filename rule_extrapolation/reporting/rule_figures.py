"""Figures of the final accuracies, by language and architecture and against the loss."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rule_extrapolation.reporting.comparison import Group, average
from rule_extrapolation.reporting.measures import (
    AT_MINIMUM,
    LOSS,
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
    chance_handle,
    chance_levels,
    draw_chance,
    language_name,
    legend_above,
    loss_axis,
    loss_limit,
    marked,
    optima,
    optimum_handle,
    panels,
    row_handles,
    say_missing,
)
from rule_extrapolation.reporting.published import published
from rule_extrapolation.reporting.style import CHANCE, Look, looks
from rule_extrapolation.reporting.tables import published_row

MOST_MARKS = 500
"""The number of marks in a figure above which they are smaller, and drawn as pixels in the PDF and SVG too."""
BAND = 6
"""How many languages are drawn side by side."""


def summary(groups: list[Group], protocol: Protocol = AT_MINIMUM, show_published: bool = False) -> Figure | None:
    """Both OOD accuracies by language and row: mean, standard deviation (truncated at 0 and 1) and each run.

    Args:
        show_published: draw the published means too.
    """
    languages = list(by_language(groups).items())
    if not languages:
        return None
    bands = [languages[start : start + BAND] for start in range(0, len(languages), BAND)]
    width = min(WIDTH, max(3.4, 0.8 + 1.6 * len(bands[0])))
    figure = Figure(figsize=(width, 0.5 + 3.7 * len(bands)), layout="constrained")
    axes = figure.subplots(2 * len(bands), 1, squeeze=False)[:, 0]
    row_looks = looks(groups)
    for i, band in enumerate(bands):
        for j, measure in enumerate((OOD_RULE_1, OOD_RULE_2_COMPLETION)):
            draw_band(axes[2 * i + j], band, measure, protocol, row_looks, show_published, len(bands[0]), names=j == 1)
    handles = [*row_handles(groups), chance_handle()]
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
            for level in chance_levels([group], measure, protocol):
                ends = [at - width / 2, at + width / 2]
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
    std = cell.std or 0.0
    within = [[min(std, cell.mean)], [min(std, 1 - cell.mean)]]  # no accuracy is below 0 or above 1
    axes.errorbar(at, cell.mean, within, **marked(look), ms=5, capsize=2, lw=0.9)
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
    """Each run's test loss against its OOD R1."""
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
        points = {group.name: loss_and_rule_1(group) for group in rows}
        losses = {name: [x for x, _ in pairs] for name, pairs in points.items()}
        limit = loss_limit(losses, rows)
        for name, pairs in points.items():
            size = {"ms": 3, "alpha": 0.4} if dense else {"ms": 4.5, "alpha": 0.8}
            style = {**marked(row_looks[name]), **size, "rasterized": dense}
            shown = [min(x, limit) for x, _ in pairs]
            ax.plot(shown, [y for _, y in pairs], ls="", clip_on=False, **style)
        for optimal in optima(rows):
            ax.axvline(optimal, color="black", ls="--", lw=0.8, zorder=0)
        draw_chance(ax, rows, OOD_RULE_1, AT_MINIMUM)
        beyond = loss_axis(ax, "x", losses, rows)
        ax.set_xlabel(f"test loss  ({beyond} \u2192)" if beyond else "test loss")
        accuracy_axis(ax, OOD_RULE_1.title)
        ax.set_title(language_name(grammar), loc="left")
    legend_above(figure, [*row_handles(groups), chance_handle(), optimum_handle()])
    return figure


def loss_and_rule_1(group: Group) -> list[tuple[float, float]]:
    pairs = [[AT_MINIMUM.value(run.results, measure) for measure in (LOSS, OOD_RULE_1)] for run in group.runs]
    return [(x, y) for x, y in pairs if x is not None and y is not None]
