"""Counts of n-grams, made and looked up by sorting and binary search, without a loop over tokens.

The context of an n-gram is all its tokens but the last. The contexts of each length are numbered. The key of a context
is ``n * num_tokens + oldest token``, where n is the number of the context without its oldest token. So keys fit into 64
bits for any vocabulary and order, and memory is proportional to the number of different n-grams.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rule_extrapolation.core.tokens import PAD, SOS

NONE = -1
"""Stands for the tokens before a row's first token."""
MOST_UNGROUPED = 2**22
"""The maximum number of n-grams to collect before equal ones are merged."""


@dataclass
class Level:
    """The E n-grams of one order: each of the C contexts of that length with every token that has followed it."""

    num_tokens: int
    contexts: Tensor
    """(C,) the contexts' keys, in ascending order; a context's index is its number."""
    owners: Tensor
    """(E,) the number of each n-gram's context, in ascending order."""
    tokens: Tensor
    """(E,) the last token of each n-gram, in ascending order within a context."""
    counts: Tensor
    """(E,) int64."""

    @property
    def keys(self) -> Tensor:
        """(E,) owner * num_tokens + token, in ascending order."""
        return self.owners * self.num_tokens + self.tokens

    @property
    def shorter(self) -> Tensor:
        """(E,) the keys that the n-grams without their oldest token have in the level of the next lower order."""
        return self.contexts[self.owners] // self.num_tokens * self.num_tokens + self.tokens

    def per_context(self, values: Tensor) -> Tensor:
        """Sums over the n-grams of each context: (E,) -> (C,) float64."""
        return torch.zeros(len(self.contexts), dtype=torch.float64).index_add_(0, self.owners, values.double())


def count_ngrams(
    batches: Iterable[Tensor], order: int, num_tokens: int, carried: bool = False
) -> tuple[Tensor, Tensor]:
    """Count the n-grams that end in a symbol or EOS. SOS and PAD are never targets, nor is the first token of a row.

    Args:
        batches: (N, T) token rows each. An n-gram lies within one row.
        order: how many tokens an n-gram has.
        num_tokens: size of the vocabulary.
        carried: each row continues the same row of the previous batch, and its first token repeats the last one there.
            N-grams then span batches.

    Returns:
        The U different n-grams, (U, order), each in reverse: the target, the token before it, and so on, with NONE in
        place of tokens before the row's first. And (U,) their counts.
    """
    waiting: list[tuple[Tensor, Tensor]] = [(torch.empty(0, order, dtype=torch.long), torch.empty(0, dtype=torch.long))]
    size, before = 0, None
    for rows in batches:
        if before is None or not carried:
            before = torch.full((len(rows), order - 1), NONE)
        history = torch.cat([before, rows.cpu().long()], 1)
        before = history[:, -order:-1]
        windows = history.unfold(1, order, 1)[:, 1:].flip(2).flatten(0, 1)
        windows = windows[(windows[:, 0] != SOS) & (windows[:, 0] != PAD)]
        waiting.append((windows, windows.new_ones(len(windows))))
        size += len(windows)
        if size > MOST_UNGROUPED:
            waiting, size = [grouped(*map(torch.cat, zip(*waiting)), num_tokens)], 0
    return grouped(*map(torch.cat, zip(*waiting)), num_tokens)


def grouped(ngrams: Tensor, counts: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """(N, order) n-grams and (N,) counts -> each different n-gram once, and the sums of their counts."""
    base, key, largest = num_tokens + 1, ngrams[:, 0], num_tokens
    for column in ngrams[:, 1:].unbind(1):
        if largest * base >= 2**62:
            key = key.unique(return_inverse=True)[1]
            largest = len(key)
        key, largest = key * base + column + 1, largest * base
    different, inverse = key.unique(return_inverse=True)
    representative = torch.empty_like(different)
    representative[inverse] = torch.arange(len(key))
    return ngrams[representative], bincount(inverse, counts, len(different))


def bincount(places: Tensor, counts: Tensor, length: int) -> Tensor:
    """(length,) int64: the sum of the counts at each place."""
    return torch.zeros(length, dtype=torch.long).index_add_(0, places, counts)


def levels_of(ngrams: Tensor, counts: Tensor, num_tokens: int) -> list[Level]:
    """The n-grams of all orders from the results of ``count_ngrams``, by the length of the context: 0 to order - 1."""
    levels, numbers = [], torch.zeros(len(ngrams), dtype=torch.long)
    for length in range(ngrams.shape[1]):
        contexts = torch.zeros(1, dtype=torch.long)
        if length:
            exists = ngrams[:, length] != NONE
            ngrams, counts, numbers = ngrams[exists], counts[exists], numbers[exists]
            contexts, numbers = (numbers * num_tokens + ngrams[:, length]).unique(return_inverse=True)
        keys, inverse = (numbers * num_tokens + ngrams[:, 0]).unique(return_inverse=True)
        totals = bincount(inverse, counts, len(keys))
        levels.append(Level(num_tokens, contexts, keys // num_tokens, keys % num_tokens, totals))
    return levels


def continuation_counts(levels: list[Level]) -> list[Tensor]:
    """(E,) for each level: how many different tokens have preceded each n-gram (Kneser and Ney 1995).

    N-grams of the highest order, and those that begin with SOS, which nothing precedes, keep their counts.
    """
    found = []
    for level, longer in pairwise(levels):
        places = torch.searchsorted(level.keys, longer.shorter)
        # At least 1: an n-gram may have occurred only at the start of a row.
        counts = bincount(places, torch.ones_like(places), len(level.counts)).clamp_min(1)
        begins = (level.contexts % level.num_tokens == SOS) & (level is not levels[0])
        found.append(torch.where(begins[level.owners], level.counts, counts))
    return [*found, levels[-1].counts]


def pruned(levels: list[Level], min_count: list[int]) -> tuple[list[Level], list[Tensor]]:
    """Remove n-grams that have occurred fewer than ``min_count`` times.

    Args:
        min_count: one number for each level, not decreasing. The n-grams that a kept one ends with, which have occurred
            at least as often, are then kept too, so that its context can be found.

    Returns:
        The smaller levels, and for each level (E,) bool: which n-grams are kept.
    """
    kept_levels, masks = [], []
    numbers = torch.zeros(1, dtype=torch.long)
    for level, least in zip(levels, min_count):
        kept = level.counts >= least
        has_any = level.per_context(kept) > 0 if kept_levels else torch.ones(1, dtype=torch.bool)
        keys = level.contexts[has_any]
        contexts = numbers[keys // level.num_tokens] * level.num_tokens + keys % level.num_tokens
        numbers = has_any.long().cumsum(0) - 1
        owners = numbers[level.owners[kept]]
        kept_levels.append(Level(level.num_tokens, contexts, owners, level.tokens[kept], level.counts[kept]))
        masks.append(kept)
    return kept_levels, masks


def look_up(contexts: Tensor, shorter: Tensor, token: Tensor, num_tokens: int) -> Tensor:
    """The numbers of contexts, -1 for those that have not occurred.

    Args:
        contexts: (C,) the keys of a level's contexts.
        shorter: the numbers of the contexts without their oldest token, or -1, in any shape.
        token: the oldest tokens, or NONE, in the same shape.
    """
    if not len(contexts):
        return torch.full_like(shorter, -1)
    keys = shorter * num_tokens + token
    places = torch.searchsorted(contexts, keys).clamp_max(len(contexts) - 1)
    return torch.where((contexts[places] == keys) & (shorter >= 0) & (token >= 0), places, -1)
