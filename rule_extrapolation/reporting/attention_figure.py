"""A figure of what a completion attends to in its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rule_extrapolation.reporting.plotting import WIDTH

INCHES_PER_TOKEN = 0.17


def attention(weights: Sequence[Sequence[float]], prompt: Sequence[str], completion: Sequence[str]) -> Figure:
    """Draw attention weights, with the prompt's tokens from left to right and the completion's from top to bottom.

    Args:
        weights: a row for each token of the completion and a column for each token of the prompt, from 0 to 1.
        prompt, completion: the tokens' labels.
    """
    width = min(WIDTH, 1.5 + INCHES_PER_TOKEN * len(prompt))
    figure = Figure(figsize=(width, 0.8 + INCHES_PER_TOKEN * len(completion)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.asarray(weights), cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(prompt)), prompt)
    axes.set_yticks(range(len(completion)), completion)
    axes.tick_params(length=0)
    axes.set_xlabel("prompt")
    axes.set_ylabel("completion")
    figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], label="weight")
    return figure
