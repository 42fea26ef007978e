"""What the letter languages share: counting and ordering letters, and drawing words of them."""

from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.grammars.exact.process import Automaton
from rule_extrapolation.grammars.grammar import PAD, as_numbers, uniform_integers
from rule_extrapolation.ops import words
from rule_extrapolation.ops.strings import first, last

A, B, C = 3, 4, 5


def length(symbols: Tensor) -> Tensor:
    """(B, T) -> (B,): how many symbols there are."""
    return first(symbols, PAD)


def seen(symbols: Tensor, symbol: int) -> Tensor:
    """(B, T) -> (B, T) bool: has the symbol occurred, here or before?"""
    return torch.arange(symbols.shape[1], device=symbols.device) >= first(symbols, symbol)[:, None]


def all_before(symbols: Tensor, *letters: int) -> Tensor:
    """(B, T) -> (B,) bool: of two of the letters, none comes after one that is listed later."""
    ordered, begins = symbols.new_ones(len(symbols), dtype=torch.bool), symbols.shape[1]
    for letter, later in zip(letters[-2::-1], letters[:0:-1]):
        begins = first(symbols, later).clamp_max(begins)
        ordered &= last(symbols, letter) < begins
    return ordered


def shuffled(
    letters: tuple[int, int], num_first: Tensor, lengths: Tensor, width: int, generator: torch.Generator | None
) -> Tensor:
    """Words of two letters in an even order: ``num_first`` (N,) of the first, the other ones up to ``lengths`` (N,).

    Returns:
        (N, width) int8 symbols followed by PAD.
    """
    return words.shuffled(letters, num_first, lengths, width, words.draw_keys(len(lengths), generator))


def sample_lengths_and_as(num: int, max_length: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Two (num,): l ~ U{1..max_length}, and an even number of a's, 2k with k ~ U{0..(l-1)//2}."""
    lengths = torch.randint(1, max_length + 1, (num,), generator=generator)
    return lengths, 2 * uniform_integers((lengths - 1) // 2, generator)


def uniform_over(words: Tensor, num_symbols: int) -> Automaton:
    """Each of (N, T) different words, symbols followed by PAD, is as probable as the others."""
    return Automaton.of_words(as_numbers(words), num_symbols)


def log_orders(num_first: Tensor, num_second: Tensor) -> Tensor:
    """ln of how many words have that many symbols of two kinds."""
    n, k = (num_first + num_second).double(), num_first.double()
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
