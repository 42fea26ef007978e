"""Batches of words: runs of letters, shuffles of two letters, and random brackets.

Each random word has a key, drawn from torch's generator. The random number for the word's symbol t is number t of
splitmix64 (Steele, Lea and Flood 2014) with the key as its seed. So the compiled kernels, in any number of threads,
draw the same words as the plain torch forms. One of n choices has probability 1/n up to 2^-32.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from rule_extrapolation.ops._kernels.launcher import is_worth_compiling
from rule_extrapolation.ops.words import reference
from rule_extrapolation.ops.words.reference import random_bits

__all__ = ["brackets", "draw_keys", "random_bits", "runs", "shuffled"]


def implementation(num: int, width: int) -> ModuleType:
    """The module whose functions to use for so many words of that width."""
    if is_worth_compiling(num * width):
        from rule_extrapolation.ops.words import cpu_numba

        return cpu_numba
    return reference


def draw_keys(num: int, generator: torch.Generator | None) -> Tensor:
    """(num,) int64 keys of random words."""
    return torch.empty(num, dtype=torch.long).random_(generator=generator)


def runs(letters: list[int], counts: Tensor, width: int) -> Tensor:
    """Words such as a^2 b^3: a run of each letter.

    Args:
        letters: R letters, in order.
        counts: (N, R) lengths of the runs; each row sums to at most ``width``.

    Returns:
        (N, width) int8 symbols followed by PAD.

    Raises:
        ValueError: a word is longer than ``width``, or a run has a negative length.
    """
    check_lengths(counts, width)
    check_lengths(counts.cumsum(1), width)
    return implementation(len(counts), width).runs(letters, counts, width)


def shuffled(letters: tuple[int, int], num_first: Tensor, lengths: Tensor, width: int, keys: Tensor) -> Tensor:
    """Words of two letters in a uniformly random order.

    Each symbol is the first letter with the probability of drawing it from the letters that remain: selection sampling,
    algorithm S of Knuth, The Art of Computer Programming, volume 2, section 3.4.2.

    Args:
        letters: the two letters.
        num_first: (N,) how many symbols of each word are the first letter.
        lengths: (N,) lengths of the words, at most ``width``.
        keys: (N,) from ``draw_keys``.

    Returns:
        (N, width) int8 symbols followed by PAD.

    Raises:
        ValueError: a word is longer than ``width`` or of a negative length.
    """
    check_lengths(lengths, width)
    return implementation(len(keys), width).shuffled(letters, num_first, lengths, width, keys)


def brackets(targets: Tensor, kinds: int, width: int, nest: bool, keys: Tensor) -> Tensor:
    """Random words of brackets, one for each target length.

    ``grammars.dyck.sample_brackets`` describes the distribution.

    Args:
        targets: (N,) even lengths, at most ``width``.
        kinds: how many kinds of brackets there are.
        nest: whether only the bracket opened last may close.
        keys: (N,) from ``draw_keys``.

    Returns:
        (N, width) int8 symbols followed by PAD.

    Raises:
        ValueError: a target is longer than ``width`` or negative.
    """
    check_lengths(targets, width)
    return implementation(len(targets), width).brackets(targets, kinds, width, nest, keys)


def check_lengths(lengths: Tensor, width: int) -> None:
    if lengths.numel() and not 0 <= lengths.min() <= lengths.max() <= width:
        raise ValueError(f"lengths must be from 0 to {width}, not {lengths.min()} to {lengths.max()}")
