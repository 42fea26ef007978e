"""Dropout that is quick on a CPU too.

There, torch draws a float64 for each element, in one thread: half of a transformer's training step. Here 16 bits of
what torch's generator gives decide instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 2**16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """F.dropout; on a CPU with other draws, independent all the same and from torch's global generator.

    There the probability is the multiple of 2^-16 next to p (neither 0 nor 1), and the scale belongs to that one, so
    that the expectation is exactly x.
    """
    if not training or p == 0 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    kept = min(max(round((1 - p) * LEVELS), 1), LEVELS - 1)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.long).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    # In place and in one type: each pass over a tensor of this size counts.
    keep = bits.lt_(kept - LEVELS // 2)
    return x * keep.to(x.dtype).mul_(LEVELS / kept)
