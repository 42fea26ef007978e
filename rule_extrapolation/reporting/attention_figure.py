"""What a completion attends to in its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rule_extrapolation.reporting.plotting import WIDTH

INCH_A_TOKEN = 0.17


def attention(weights: Sequence[Sequence[float]], prompt: Sequence[str], completion: Sequence[str]) -> Figure:
    """The prompt's tokens from left to right, the completion's from top to bottom.

    Args:
        weights: a row for each token of the completion, a column for each of the prompt; from 0, white, to 1, black.
        prompt, completion: tokens as they are written.
    """
    width = min(WIDTH, 1.5 + INCH_A_TOKEN * len(prompt))
    figure = Figure(figsize=(width, 0.8 + INCH_A_TOKEN * len(completion)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.asarray(weights), cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(prompt)), prompt)
    axes.set_yticks(range(len(completion)), completion)
    axes.tick_params(length=0)
    axes.set_xlabel("prompt")
    axes.set_ylabel("completion")
    figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], label="weight")
    return figure
