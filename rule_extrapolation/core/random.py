"""Independent random streams from one seed."""

from __future__ import annotations

import numpy as np
import torch


def generator(seed: int, *stream: int) -> torch.Generator:
    """A torch.Generator of its own for each (seed, stream...), whatever else was drawn before."""
    state = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
