"""Independent random streams from one seed."""

from __future__ import annotations

import numpy as np
import torch


def generator(seed: int, *stream: int) -> torch.Generator:
    """A new generator for each combination of seed and stream numbers, independent of all others."""
    state = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
