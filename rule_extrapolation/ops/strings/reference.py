"""Queries on strings in plain torch. Arguments and results are those of the functions in ``strings``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL, PAD, SOS


def truncate_at_eos(strings: Tensor) -> tuple[Tensor, Tensor]:
    strings = strings.to(torch.int8)
    end = first_true(strings < FIRST_SYMBOL)[:, None]
    # One more EOS follows the last column.
    is_string = pad(strings, (0, 1), value=EOS).gather(1, end) == EOS
    ended = torch.arange(strings.shape[1], device=strings.device) >= end
    return strings.masked_fill(ended | ~is_string, PAD), is_string[:, 0]


def frame(symbols: Tensor) -> Tensor:
    batch, length = symbols.shape
    rows = symbols.new_full((batch, length + 2), PAD, dtype=torch.long)
    rows[:, 0] = SOS
    rows[:, 1:-1] = symbols
    return rows.scatter_(1, 1 + first(symbols, PAD).long()[:, None], EOS)


def first_true(found: Tensor) -> Tensor:
    """(B, T) bool -> (B,): the index of the first true element of each row, T if there is none."""
    # One more column follows the last, which is always true.
    return pad(found.view(torch.uint8), (0, 1), value=1).argmax(1)


def count(symbols: Tensor, symbol: int) -> Tensor:
    return (symbols == symbol).view(torch.uint8).sum(1, dtype=torch.int32)


def first(symbols: Tensor, symbol: int) -> Tensor:
    return first_true(symbols == symbol).int()


def last(symbols: Tensor, symbol: int) -> Tensor:
    return symbols.shape[1] - 1 - first_true((symbols == symbol).flip(1)).int()


def matched(symbols: Tensor, opening: int) -> tuple[Tensor, Tensor]:
    opens, closes = (symbols == opening + side for side in (0, 1))
    depth = (opens.view(torch.int8) - closes.view(torch.int8)).cumsum(1, dtype=torch.int32)
    return (depth >= 0).all(1), pad(depth, (1, 0))[:, -1]


def nested(symbols: Tensor) -> tuple[Tensor, Tensor]:
    batch, length = symbols.shape
    # Positions first, so that each step reads and writes contiguous rows. stack[0], below the first bracket, stays 0,
    # which is no bracket.
    stack = symbols.new_zeros(length + 1, batch)
    top = torch.zeros(1, batch, dtype=torch.long, device=symbols.device)
    proper = torch.ones(1, batch, dtype=torch.bool, device=symbols.device)
    is_symbol = symbols >= FIRST_SYMBOL
    opens = is_symbol & ((symbols - FIRST_SYMBOL) % 2 == 0)
    by_position = (x.T[:, None].contiguous() for x in (symbols, opens, is_symbol & ~opens))
    for symbol, opening, closing in zip(*by_position):
        proper &= ~closing | (stack.gather(0, top) == symbol - 1)
        top = (top + opening.long() - closing.long()).clamp_(min=0)
        stack.scatter_(0, top, torch.where(opening, symbol, stack.gather(0, top)))
    return proper[0], top[0].int()
