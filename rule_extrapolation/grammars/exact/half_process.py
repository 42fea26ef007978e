from __future__ import annotations

import math

import torch
from torch import Tensor

from rule_extrapolation.grammars.exact.process import Process


class HalfProcess(Process):
    """The distribution of words whose second half is determined by the first.

    The first half has l ~ U{1..max_half} symbols: a given first one, then uniformly drawn ones. The second half is the
    first half again, or reversed.

    Given a prefix of t symbols, every l >= t is possible, and of the shorter ones those that the prefix agrees with.
    Under a possible l, the prefix has the probability num_symbols^-(min(t, l) - 1).

    Columns of a state: t, the symbols of the prefix, then for each l whether it is possible.
    """

    def __init__(self, num_symbols: int, max_half: int, first: int, reverse: bool):
        self.num_symbols, self.max_half, self.first, self.reverse = num_symbols, max_half, first, reverse
        self.half = torch.arange(1, max_half + 1)

    def start(self, num: int) -> Tensor:
        state = torch.zeros(num, 1 + 3 * self.max_half, dtype=torch.long)
        state[:, 1 + 2 * self.max_half :] = 1
        return state

    def parts(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1) length of the prefix, (B, 2 max_half) its symbols, and (B, max_half) whether each l is possible."""
        return state[:, :1], state[:, 1 : 1 + 2 * self.max_half], state[:, 1 + 2 * self.max_half :].bool()

    def source(self, place: Tensor) -> Tensor:
        """(B, 1) places in the word -> (B, max_half) the place in the first half that each repeats under each l, or -1
        if it is in the first half itself or after the word."""
        repeated = 2 * self.half - 1 - place if self.reverse else place - self.half
        inside = (place >= self.half) & (place < 2 * self.half)
        return torch.where(inside, repeated, -1)

    def probabilities(self, state: Tensor) -> Tensor:
        length, symbols, possible = self.parts(state)
        log_weight = -math.log(self.num_symbols) * torch.minimum(length, self.half).double()
        log_weight = log_weight.masked_fill(~possible, -torch.inf)
        weight = torch.nan_to_num(log_weight.softmax(1))  # not a number if no l is possible
        free = torch.zeros(len(state), self.num_symbols, dtype=torch.float64)
        free[:] = (weight * (length < self.half)).sum(1, keepdim=True) / self.num_symbols
        begins = length[:, 0] == 0
        free[begins] = torch.nn.functional.one_hot(torch.tensor(self.first), self.num_symbols).double()
        source = self.source(length)
        repeated = symbols.gather(1, source.clamp_min(0))
        free.scatter_add_(1, repeated, weight * (source >= 0))
        ends = (weight * (length == 2 * self.half)).sum(1, keepdim=True)
        return torch.cat([ends, free], 1)

    def read(self, state: Tensor, symbol: Tensor) -> Tensor:
        length, symbols, possible = self.parts(state)
        source = self.source(length)
        agrees = (source < 0) | (symbols.gather(1, source.clamp_min(0)) == symbol[:, None])
        possible = possible & agrees & (length < 2 * self.half) & ((length > 0) | (symbol[:, None] == self.first))
        place = length.clamp_max(2 * self.max_half - 1)  # a row of a batch may have ended
        return torch.cat([length + 1, symbols.scatter(1, place, symbol[:, None]), possible.long()], 1)

    def entropy(self) -> float:
        """The entropy of l, and of the symbols of the first half but the first one."""
        return math.log(self.max_half) + (self.max_half - 1) / 2 * math.log(self.num_symbols)
