"""The published figures: Mészáros et al., NeurIPS 2024, arXiv 2409.13728.

published_results.csv holds mean, standard deviation and number of runs, computed from the authors' per-run files
(https://github.com/meszarosanna/rule_extrapolation, notebooks/). The standard deviation of a single run is empty, and
so is what the authors did not store. ``experiment`` is main for the paper's five architectures on its six languages;
docs/published.md lists the others. ``protocol`` is mostly a run's best over training. Accuracies are over finished
completions; a run in which nothing finished counts as 0. ``paper_label`` is the paper's label: its L4 is our L5, and
its L5 is our L4.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd

SOURCE = "Mészáros et al., NeurIPS 2024, arXiv 2409.13728, computed from the authors' per-run files"
PEOPLE = "people"
"""The ``model`` of the figures of 14 people who completed prompts."""


def none_finished(line: pd.Series, prompts: str | None) -> bool:
    """Whether no run of a row finished a completion of a prompt set, so that its accuracies of 0 are over nothing.

    Args:
        prompts: ID or OOD. None, for the loss, is never so.
    """
    return prompts is not None and line.get(f"{prompts.lower()}_finished_mean") == 0


@functools.cache
def all_published() -> pd.DataFrame:
    """The rows of published_results.csv."""
    return pd.read_csv(Path(__file__).with_name("published_results.csv"))


@functools.cache
def published() -> pd.DataFrame:
    """The figures of the main experiment, indexed by (grammar, model)."""
    rows = all_published()
    return rows[rows["experiment"] == "main"].set_index(["grammar", "model"])


def people(grammar: str) -> pd.Series | None:
    """The figures of people on a language, if there are any."""
    rows = all_published()
    rows = rows[(rows["experiment"] == PEOPLE) & (rows["grammar"] == grammar)]
    return rows.iloc[0] if len(rows) else None


def paper_label(grammar: str) -> str | None:
    """The paper's label of a language, or None if the language is not in the paper.

    >>> paper_label("aNbNcN")
    'L5'
    """
    labels = published()["paper_label"]
    return labels[grammar].iloc[0] if grammar in labels else None
