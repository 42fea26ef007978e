"""The published figures: Mészáros et al., NeurIPS 2024, arXiv 2409.13728.

published_results.csv holds mean, standard deviation and number of runs for each language and model, computed from the
authors' per-run files. The standard deviation of a single run is empty. Each figure is a run's best over training, with
accuracies over finished completions. ``paper_label`` is the paper's label: its L4 is our L5, and its L5 is our L4.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd

SOURCE = "Mészáros et al., NeurIPS 2024, arXiv 2409.13728, computed from the authors' per-run files"


@functools.cache
def published() -> pd.DataFrame:
    """The table, indexed by (grammar, model)."""
    return pd.read_csv(Path(__file__).with_name("published_results.csv")).set_index(["grammar", "model"])


def paper_label(grammar: str) -> str | None:
    """The paper's label of a language, or None if the language is not in the paper.

    >>> paper_label("aNbNcN")
    'L5'
    """
    labels = published()["paper_label"]
    return labels[grammar].iloc[0] if grammar in labels else None
