"""Helpers of the letter languages: checks on counts and order, and samplers."""

from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.grammars.exact.process import Automaton
from rule_extrapolation.grammars.grammar import uniform_integers, zero_based
from rule_extrapolation.ops import words
from rule_extrapolation.ops.strings import first, last

A, B, C = 3, 4, 5


def length(symbols: Tensor) -> Tensor:
    """(B, T) -> (B,): the number of symbols."""
    return first(symbols, PAD)


def seen(symbols: Tensor, symbol: int) -> Tensor:
    """(B, T) -> (B, T) bool: whether the symbol occurs at or before each position."""
    return torch.arange(symbols.shape[1], device=symbols.device) >= first(symbols, symbol)[:, None]


def all_before(symbols: Tensor, *letters: int) -> Tensor:
    """(B, T) -> (B,) bool: whether the letters occur in the order in which they are listed."""
    ordered, start = symbols.new_ones(len(symbols), dtype=torch.bool), symbols.shape[1]
    for letter, later in zip(letters[-2::-1], letters[:0:-1]):
        start = first(symbols, later).clamp_max(start)
        ordered &= last(symbols, letter) < start
    return ordered


def shuffled(
    letters: tuple[int, int], num_first: Tensor, lengths: Tensor, width: int, generator: torch.Generator | None
) -> Tensor:
    """Words of two letters in uniformly random order.

    Args:
        num_first: (N,) how many of the first letter each word contains. The rest is the second letter.
        lengths: (N,) symbols in each word.

    Returns:
        (N, width) int8 symbols followed by PAD.
    """
    return words.shuffled(letters, num_first, lengths, width, words.draw_keys(len(lengths), generator))


def sample_lengths_and_as(num: int, max_length: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Lengths l ~ U{1..max_length} and numbers of a's 2k, k ~ U{0..⌊(l-1)/2⌋}, each of shape (num,)."""
    lengths = torch.randint(1, max_length + 1, (num,), generator=generator)
    return lengths, 2 * uniform_integers((lengths - 1) // 2, generator)


def uniform_over(words: Tensor, num_symbols: int) -> Automaton:
    """The uniform distribution over (N, T) distinct words, each its symbols followed by PAD."""
    return Automaton.from_words(zero_based(words), num_symbols)


def log_num_orders(num_first: Tensor, num_second: Tensor) -> Tensor:
    """The logarithm of the number of words with these counts of two symbols, ln C(n, k)."""
    n, k = (num_first + num_second).double(), num_first.double()
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
