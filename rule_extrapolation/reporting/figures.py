"""The figures: each is drawn from the rows of the tables, or left out with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from rule_extrapolation.reporting.comparison import Group
from rule_extrapolation.reporting.curve_figures import dynamics, learning_curves, lengths, prompt_lengths
from rule_extrapolation.reporting.measures import AT_MINIMUM, OVER_TRAINING
from rule_extrapolation.reporting.rule_figures import loss_and_rules, summary, summary_beside_published
from rule_extrapolation.reporting.style import RC

FORMATS = ("pdf", "svg", "png")


class Kind(NamedTuple):
    title: str
    caption: str
    draw: Callable[[list[Group]], Figure | None]
    without: str
    """Why there is none, if there is none."""


@contextmanager
def styled() -> Iterator[None]:
    with matplotlib.rc_context(RC):
        yield


def draw_all(groups: list[Group]) -> tuple[dict[str, Figure], dict[str, str]]:
    """The figures by name, and for each that is left out why."""
    groups = [group for group in groups if group.runs]
    figures, left_out = {}, {}
    with styled():
        for name, kind in KINDS.items():
            figure = kind.draw(groups)
            if figure is None:
                left_out[name] = kind.without
            else:
                figures[name] = figure
    return figures, left_out


def save(figure: Figure, folder: Path, name: str) -> None:
    for format in FORMATS:
        save_as(figure, folder / f"{name}.{format}")


def save_as(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the path ends in, one of FORMATS."""
    # Without a date, the same runs make the same file.
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(path.suffix)
    with styled():
        figure.savefig(path, metadata=metadata, bbox_inches="tight", pad_inches=0.05)


KINDS = {
    "summary": Kind(
        "Rules on OOD prompts",
        f"Mean and standard deviation over runs, each run a dot, {AT_MINIMUM.title}, over all completions.",
        summary,
        "no finished run",
    ),
    "summary_published": Kind(
        "Rules on OOD prompts, beside the published figures",
        f"Mean and standard deviation over runs, {OVER_TRAINING.title}, over finished completions; bars: published.",
        summary_beside_published,
        "no finished run on a language of the paper",
    ),
    "loss_and_rules": Kind(
        "Loss against R1 on OOD prompts",
        f"Each run a mark, {AT_MINIMUM.title}.",
        loss_and_rules,
        "no finished run with OOD prompts and R1",
    ),
    "learning_curves": Kind(
        "Learning curves",
        "Thin: single runs; thick: their mean as far as all go. OOD R1 is over all completions.",
        learning_curves,
        "no finished run has a validation in its metrics.csv",
    ),
    "dynamics": Kind(
        "Training dynamics",
        "Probability mass of all short strings by the rules that they keep. Thin: single runs; thick: their mean.",
        dynamics,
        "no finished run has them; train with callbacks=dynamics",
    ),
    "lengths": Kind(
        "Longer words",
        "Loss in nats per symbol and EOS, and what becomes of words' first halves and one symbol more, by the words' "
        "length; means over the runs that were evaluated.",
        lengths,
        "no finished run has an evaluation by length; run python -m rule_extrapolation.evaluate run=<folder>",
    ),
    "prompt_lengths": Kind(
        "Longer prompts",
        "What becomes of prompts by their length, over all completions; means over the runs that were evaluated.",
        prompt_lengths,
        "no finished run has an evaluation of prompts of several lengths; run python -m rule_extrapolation.evaluate "
        "run=<folder> prompt_length=4,6,8,10",
    ),
}
