"""What the figures have in common: axes, legends, and the marks of chance, of stopping at once and of the optimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rule_extrapolation.reporting.comparison import Group
from rule_extrapolation.reporting.measures import Measure
from rule_extrapolation.reporting.style import CHANCE, STOP, Look, looks
from rule_extrapolation.reporting.tables import LABELS, reference_level
from rule_extrapolation.runs.run_folder import COMPLETIONS_ALONE

WIDTH = 7.0
"""The width of a page's text, in inches."""
LEGEND_LETTERS = 125
"""How many letters fit into one row of a legend of that width."""
MOST_LINES = 60
"""The number of single runs' lines in a figure above which they are drawn as pixels, in the PDF and SVG too."""
LINEAR = 1e-4
"""Differences from the optimal loss up to this are drawn on a linear scale. They come close to 0 and, by rounding or by
chance on a sample of words, below it."""


def by_language(groups: list[Group]) -> dict[str, list[Group]]:
    names = dict.fromkeys(group.grammar for group in groups)
    return {name: [group for group in groups if group.grammar == name] for name in names}


def language_name(grammar: str, width: int = 40) -> str:
    """Label and name, broken at underscores into lines of at most ``width`` letters where possible."""
    lines, line = [], LABELS.get(grammar, "")
    line += " " if line else ""
    for part in grammar.split("_"):
        part += "_"
        if len(line) + len(part) > width and line.strip():
            lines.append(line)
            line = ""
        line += part
    return "\n".join([*lines, line]).rstrip("_")


def legend_above(figure: Figure, handles: list) -> None:
    """A legend above the figure, with as many columns as its letters leave room for."""
    widths = [len(handle.get_label()) + 6 for handle in handles]
    letters = int(LEGEND_LETTERS * figure.get_figwidth() / WIDTH)
    columns = len(handles) if sum(widths) <= letters else max(1, letters // max(widths))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=columns,
        columnspacing=1.1,
        handletextpad=0.4,
        handlelength=1.6,
    )


def marked(look: Look) -> dict[str, str]:
    return {"color": look.color, "marker": look.marker, "fillstyle": look.fill}


def row_handles(groups: list[Group], lines: bool = False) -> list[Line2D]:
    return [
        Line2D([], [], **marked(look), ls=look.line if lines else "", ms=5, label=name)
        for name, look in looks(groups).items()
    ]


def accuracy_axis(axes: Axes, title: str) -> None:
    axes.set_ylim(-0.04, 1.04)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel(title)


def say_missing(axes: Axes, at: float, reason: str, rotation: float = 90) -> None:
    """Write the reason for a missing figure where the figure would be."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axes.text(at, 0.5, reason, rotation=rotation, ha="center", va="center", fontsize=6, color="#555555", bbox=box)


def step_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}")
    )


def reference_levels(groups: list[Group], entry: str, measure: Measure) -> list[float]:
    """The rows' levels of chance (``chance_levels``) or of stopping at once (``stop_at_once``), where known."""
    levels = [reference_level(group.runs[0].results, entry, measure) for group in groups]
    return [level for level in levels if level is not None]


def reference_handles() -> list[Patch | Line2D]:
    return [Patch(color=CHANCE, alpha=0.6, label="chance"), Line2D([], [], **STOP, label="stop at once")]


def optimum_handle() -> Line2D:
    return Line2D([], [], color="black", ls="--", lw=0.8, label="optimum")


def draw_references(axes: Axes, groups: list[Group], measure: Measure) -> None:
    """Draw the levels of chance and of stopping at once of each row.

    Levels of chance differ if rows limit the length of completions differently.
    """
    for level in {round(level, 3) for level in reference_levels(groups, "chance_levels", measure)}:
        axes.axhspan(level - 0.008, level + 0.008, color=CHANCE, alpha=0.6, lw=0, zorder=0)
    for level in {round(level, 3) for level in reference_levels(groups, "stop_at_once", measure)}:
        axes.axhline(level, **STOP, zorder=0.5)


def optimum_entry(groups: list[Group], words: str) -> str | None:
    """The entry of results.json that a figure subtracts from the losses of all these rows.

    It is the optimum of the very words, since on a sample of words a model can have a lower loss than the optimum of
    the language. Runs of an earlier version have only the latter.

    Args:
        words: "test" or "validation".

    Returns:
        None if the optimum of a run is not known.
    """
    runs = [run for group in groups for run in group.runs]
    for entry in (f"optimal_loss_on_{words}_words", "optimal_loss"):
        if all(run.results.get(entry) is not None for run in runs):
            return entry
    return None


def loss_title(loss: str, entry: str | None) -> str:
    """The title of an axis of losses from which the entry is subtracted.

    >>> loss_title("test loss", "optimal_loss")
    'test loss − optimum (language)'
    """
    if entry is None:
        return loss
    return f"{loss} \N{MINUS SIGN} {'optimum (language)' if entry == 'optimal_loss' else 'optimum'}"


def loss_limit(losses: dict[str, list[float]], groups: list[Group]) -> float:
    """The upper end of an axis of losses.

    It is inf, unless rows that are trained on another objective have losses so large that the others would be squeezed
    together.

    Args:
        losses: what is to be drawn, by the row's name.
    """
    own = [loss for group in groups if trains_on_loss(group) for loss in losses[group.name]]
    if not own or max(chain(*losses.values())) < 3 * max(*own, LINEAR):
        return math.inf
    return max(max(own) + 0.25 * (max(own) - min(own)), LINEAR)


def trains_on_loss(group: Group) -> bool:
    """Whether the row's objective is the loss over whole words, PAD included."""
    if COMPLETIONS_ALONE in (group.caveat or ""):
        return False
    validations = [run.results.get("at_best_validation", {}) for run in group.runs]
    return all(figures.get("Val/objective") == figures.get("Val/loss") for figures in validations)


def loss_axis(
    axes: Axes, direction: str, losses: dict[str, list[float]], groups: list[Group], entry: str | None
) -> str:
    """Scale an axis of losses, up to ``loss_limit``, and draw the optimum where it is subtracted.

    Args:
        direction: "x" or "y".
        losses: what is drawn, by the row's name.
        entry: what is subtracted, as from ``optimum_entry``.

    Returns:
        The rows with losses beyond the limit, and the range of these losses, such as "linear 2.1 to 4.4".
    """
    limit = loss_limit(losses, groups)
    shown = [loss for loss in chain(*losses.values()) if loss <= limit]
    axis = {"x": axes.xaxis, "y": axes.yaxis}[direction]
    set_scale, set_lim = getattr(axes, f"set_{direction}scale"), getattr(axes, f"set_{direction}lim")
    if entry is not None:
        {"x": axes.axvline, "y": axes.axhline}[direction](0, color="black", ls="--", lw=0.8, zorder=0)
        low, high = min([0.0, *shown]), max([LINEAR, *shown])
        linear = max(LINEAR, 10.0 ** math.floor(math.log10(min(loss for loss in [high, *shown] if loss > 0))))
        if high > 10 * linear:
            symmetric_logarithmic(set_scale, axis, low, high, linear)
            set_lim(low * 1.5 - 0.2 * linear, limit if limit < math.inf else high * 1.5)
        else:
            axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            set_lim(low - 0.05 * (high - low), limit if limit < math.inf else high + 0.05 * (high - low))
    elif shown and max(shown) > 6 * min(shown) > 0:
        logarithmic(set_scale, axis, min(shown), max(shown))
    else:
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    if entry is None and shown and limit < math.inf:
        low = max(0.9 * min(shown), min(shown) - 0.1 * (max(shown) - min(shown)))
        set_lim(low, limit)
    beyond = {name: [loss for loss in values if loss > limit] for name, values in losses.items()}
    return ", ".join(f"{name} {min(values):.2g} to {max(values):.2g}" for name, values in beyond.items() if values)


def symmetric_logarithmic(set_scale: Callable, axis: Axis, low: float, high: float, linear: float) -> None:
    """Make an axis logarithmic, except between -linear and linear, where it is linear and so can show 0 and less."""
    set_scale("symlog", linthresh=linear, linscale=0.5)
    powers = [linear * 10.0**power for power in range(8)]
    ticks = [*(-tick for tick in powers if tick <= -low), 0, *(tick for tick in powers if tick <= 1.5 * high)]
    axis.set_ticks(ticks)
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def panels(height: float, n: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with n axes, each ``height`` inches high."""
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(WIDTH, 0.5 + height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in axes[n:]:
        empty.set_axis_off()
    return figure, axes[:n]


def logarithmic(set_scale: Callable, axis: Axis, low: float, high: float) -> None:
    """Make an axis logarithmic, with a few ticks that are labelled by plain numbers."""
    set_scale("log")
    ticks = [digit * 10.0**power for power in range(-6, 4) for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if low * 0.85 <= tick <= high * 1.15]
    axis.set_ticks(inside[:: math.ceil(len(inside) / 5)] if inside else [])
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
