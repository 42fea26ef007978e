"""What the letter languages share: counting and ordering letters, and words made of runs of one letter."""

from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.grammars.grammar import PAD

A, B, C = 3, 4, 5


def count(symbols: Tensor, symbol: int) -> Tensor:
    """(B, T) -> (B,): how often the symbol occurs."""
    return (symbols == symbol).sum(1)


def seen(symbols: Tensor, symbol: int) -> Tensor:
    """(B, T) -> (B, T) bool: has the symbol occurred, here or before?"""
    return (symbols == symbol).cumsum(1) > 0


def all_before(symbols: Tensor, first: int, second: int) -> Tensor:
    """(B, T) -> (B,) bool: no ``first`` comes after a ``second``."""
    return ~(seen(symbols, second) & (symbols == first)).any(1)


def runs(letters: list[int], counts: Tensor, width: int) -> Tensor:
    """Words such as a^2 b^3 from how often each letter comes in its turn.

    Args:
        letters: R letters, in order.
        counts: (N, R); each row sums to ``width`` at most.

    Returns:
        (N, width) symbols followed by PAD.
    """
    ends = counts.cumsum(1)
    turn = (torch.arange(width)[None, :, None] >= ends[:, None, :]).sum(2)
    return torch.tensor([*letters, PAD])[turn]
