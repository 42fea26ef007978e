"""What the letter languages share: counting and ordering letters, and words made of runs of one letter."""

from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.grammars.grammar import PAD, as_numbers, first_position, uniform_integers
from rule_extrapolation.theory.process import Automaton

A, B, C = 3, 4, 5


def count(symbols: Tensor, symbol: int) -> Tensor:
    """(B, T) -> (B,): how often the symbol occurs."""
    return (symbols == symbol).view(torch.uint8).sum(1, dtype=torch.int32)


def seen(symbols: Tensor, symbol: int) -> Tensor:
    """(B, T) -> (B, T) bool: has the symbol occurred, here or before?"""
    return torch.arange(symbols.shape[1], device=symbols.device) >= first_position(symbols == symbol)[:, None]


def all_before(symbols: Tensor, first: int, second: int) -> Tensor:
    """(B, T) -> (B,) bool: no ``first`` comes after a ``second``."""
    last = symbols.shape[1] - 1 - first_position((symbols == first).flip(1))  # -1 if there is none
    return last < first_position(symbols == second)


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


def shuffled(
    letters: tuple[int, int], num_first: Tensor, lengths: Tensor, width: int, generator: torch.Generator | None
) -> Tensor:
    """Words of two letters in an even order: ``num_first`` (N,) of the first, the other ones up to ``lengths`` (N,).

    Returns:
        (N, width) symbols followed by PAD.
    """
    beyond = torch.arange(width) >= lengths[:, None]
    # The first letter goes where the smallest of independent random keys are.
    keys = torch.rand(beyond.shape, generator=generator, dtype=torch.float64).masked_fill(beyond, torch.inf)
    first, second = letters
    in_order = torch.nn.functional.pad(keys.sort(1).values, (1, 0), value=-torch.inf)
    largest = in_order.gather(1, num_first[:, None])
    return torch.where(keys <= largest, first, second).masked_fill(beyond, PAD)


def sample_lengths_and_as(num: int, max_length: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Two (num,): l ~ U{1..max_length}, and an even number of a's, 2k with k ~ U{0..(l-1)//2}."""
    lengths = torch.randint(1, max_length + 1, (num,), generator=generator)
    return lengths, 2 * uniform_integers((lengths - 1) // 2, generator)


def evenly(words: Tensor, num_symbols: int) -> Automaton:
    """Each of (N, T) different words, symbols followed by PAD, is as probable as the others."""
    return Automaton.of_words(as_numbers(words), num_symbols)


def log_orders(num_first: Tensor, num_second: Tensor) -> Tensor:
    """ln of how many words have that many symbols of two kinds."""
    n, k = (num_first + num_second).double(), num_first.double()
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
