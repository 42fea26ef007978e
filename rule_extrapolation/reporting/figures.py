"""The figures of a report: each is drawn from the rows of the tables, or omitted with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from rule_extrapolation.reporting.comparison import Group
from rule_extrapolation.reporting.curve_figures import dynamics, learning_curves, lengths, prompt_lengths
from rule_extrapolation.reporting.intervals import INTERVALS
from rule_extrapolation.reporting.measures import AT_MINIMUM, OVER_TRAINING
from rule_extrapolation.reporting.rule_figures import loss_and_rules, summary, summary_beside_published
from rule_extrapolation.reporting.style import RC

FORMATS = ("pdf", "svg", "png")


class Kind(NamedTuple):
    title: str
    caption: str
    draw: Callable[[list[Group]], Figure | None]
    without: str
    """Why the figure is omitted, if ``draw`` returns None."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw within this context in the style of the report."""
    with matplotlib.rc_context(RC):
        yield


def draw_all(groups: list[Group]) -> tuple[dict[str, Figure], dict[str, str]]:
    """Draw all figures. Returns them by name, and the reasons for those that are omitted."""
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
    """Write a figure in all FORMATS."""
    for format in FORMATS:
        save_as(figure, folder / f"{name}.{format}")


def save_as(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's ending, one of FORMATS."""
    # Without a date, so that the same runs give the same file.
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(path.suffix)
    with styled():
        figure.savefig(path, metadata=metadata, bbox_inches="tight", pad_inches=0.05)


KINDS = {
    "summary": Kind(
        "Rules on OOD prompts",
        f"{AT_MINIMUM.title.capitalize()}, R1 and R2 over finished completions, beside the share of completions that "
        f"finish. {INTERVALS} Each dot is a run.",
        summary,
        "no finished run",
    ),
    "summary_published": Kind(
        "Rules on OOD prompts, ours and published",
        f"{OVER_TRAINING.title.capitalize()}, ours and published, R1 and R2 over finished completions, beside the "
        f"share of completions that finish. {INTERVALS} Each dot is a run, each bar a published mean, which counts a "
        "run in which nothing finished as 0.",
        summary_beside_published,
        "no finished run on a language of the paper",
    ),
    "loss_and_rules": Kind(
        "Loss against R1 on OOD prompts",
        f"Each mark is a run, {AT_MINIMUM.title}; R1 is over finished completions. The optimum is that of the run's "
        "test words, or where the axis says so that of the language.",
        loss_and_rules,
        "no finished run with OOD prompts and R1",
    ),
    "learning_curves": Kind(
        "Learning curves",
        "Thin lines are single runs. Thick lines are their means, over the steps that all of them have. The optimum is "
        "that of the run's validation words, or where the axis says so that of the language. OOD R1 is over finished "
        "completions.",
        learning_curves,
        "no finished run has a validation in its metrics.csv",
    ),
    "dynamics": Kind(
        "Training dynamics",
        "Probability mass of all short strings by the rules that they keep. Thin lines are single runs, thick lines "
        "their means.",
        dynamics,
        "no finished run has logged them; train with callbacks=dynamics",
    ),
    "lengths": Kind(
        "Longer words",
        "Loss in nats per symbol and EOS, and accuracies of completions of the words' first halves plus one symbol, by "
        "the length of the words, over all completions, finished or not. Means over the evaluated runs.",
        lengths,
        "no finished run has an evaluation by length; run rule-extrapolation evaluate run=<folder>",
    ),
    "prompt_lengths": Kind(
        "Longer prompts",
        "Accuracies over finished completions, and the share of completions that finish, by the length of the prompts. "
        "Means over the evaluated runs.",
        prompt_lengths,
        "no finished run has an evaluation of prompts of several lengths; run rule-extrapolation evaluate "
        "run=<folder> prompt_length=4,6,8,10",
    ),
}
