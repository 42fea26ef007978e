"""Random words in plain torch. Arguments and results are those of the functions in ``words``."""

from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.core.tokens import FIRST_SYMBOL, PAD

STEP, FIRST_FACTOR, SECOND_FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of splitmix64 (Steele, Lea and Flood 2014)."""


def random_bits(keys: Tensor, position: int | Tensor) -> Tensor:
    """The 32 upper bits of output number ``position`` of splitmix64 with each key as the seed, as int64."""
    # int64 has the same bits as uint64, and its products overflow in the same way, but right shifts must bring in
    # zeros.
    x = keys + (position + 1) * as_int64(STEP)
    x = (x ^ shifted_right(x, 30)) * as_int64(FIRST_FACTOR)
    x = (x ^ shifted_right(x, 27)) * as_int64(SECOND_FACTOR)
    return shifted_right(x ^ shifted_right(x, 31), 32)


def as_int64(number: int) -> Tensor:
    return torch.tensor(number - 2**64 if number >= 2**63 else number)


def shifted_right(x: Tensor, by: int) -> Tensor:
    return (x >> by) & (2 ** (64 - by) - 1)


def runs(letters: list[int], counts: Tensor, width: int) -> Tensor:
    words = torch.full((len(counts), width), PAD, dtype=torch.int8)
    for letter, end in zip(reversed(letters), reversed(counts.cumsum(1).unbind(1))):
        words.masked_fill_(torch.arange(width) < end[:, None], letter)
    return words


def shuffled(letters: tuple[int, int], num_first: Tensor, lengths: Tensor, width: int, keys: Tensor) -> Tensor:
    first, second = letters
    words = torch.full((width, len(keys)), PAD, dtype=torch.int8)
    first_left = num_first.clone()
    for t in range(width):
        left = (lengths - t).clamp_min(0)
        takes_first = (random_bits(keys, t) * left >> 32) < first_left
        first_left -= takes_first.long()
        words[t] = torch.where(takes_first, first, second).masked_fill(left == 0, PAD)
    return words.T.contiguous()


def brackets(targets: Tensor, kinds: int, width: int, nest: bool, keys: Tensor) -> Tensor:
    num = len(targets)
    words = torch.full((num, width), PAD, dtype=torch.int8)
    # Of the words that have not ended: their rows, the number of open brackets of each kind, and the kinds of the open
    # brackets in order, of which stack[:, 0] is unused.
    row = torch.arange(num)
    open_ = torch.zeros(num, kinds, dtype=torch.long)
    stack = torch.zeros(num, width // 2 + 1, dtype=torch.long)
    for position in range(width):
        total = open_.sum(1)
        unfinished = position < targets
        if nest and position > 0:
            unfinished &= total > 0
        if not unfinished.all():
            of_words = (row, open_, stack, targets, total, keys)
            row, open_, stack, targets, total, keys = (x[unfinished] for x in of_words)
        may_open = (position + total < targets)[:, None].expand(-1, kinds)
        may_close = open_ > 0
        index = torch.arange(len(row))
        if nest:
            may_close &= torch.nn.functional.one_hot(stack[index, total], kinds).bool()
        # Columns: each kind's opening bracket, then each kind's closing one.
        choices = torch.cat([may_open, may_close], 1)
        pick = random_bits(keys, position)[:, None] * choices.sum(1, keepdim=True) >> 32
        choice = (choices.cumsum(1) > pick).long().argmax(1)
        kind, closes = choice % kinds, choice >= kinds
        words[row, position] = (FIRST_SYMBOL + 2 * kind + closes.long()).to(torch.int8)
        open_[index, kind] += torch.where(closes, -1, 1)
        if nest:
            top = total + torch.where(closes, -1, 1)
            stack[index, top] = torch.where(closes, stack[index, top], kind)
    return words
