"""N-grams of token rows, counted and looked up by sorting and searching, without a loop over tokens.

The context of a target is the tokens before it. Contexts of a length are numbered, and a longer one is found through
the one without its oldest token: its key is ``number * num_tokens + oldest token``. So keys fit 64 bits whatever the
vocabulary and the order, and memory goes by how many different n-grams there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rule_extrapolation.core.tokens import PAD, SOS

NONE = -1
"""In the place of a token before the row's first one."""
MOST_UNGROUPED = 2**22
"""N-grams that wait to be counted together, at most."""


@dataclass
class Level:
    """The n-grams of one order: each context of k tokens with every token seen behind it."""

    num_tokens: int
    contexts: Tensor
    """(C,) keys in ascending order: number of the context without its oldest token * num_tokens + that token."""
    owners: Tensor
    """(E,) in ascending order: the number of each n-gram's context."""
    tokens: Tensor
    """(E,) in ascending order for each context."""
    counts: Tensor
    """(E,) long."""

    @property
    def keys(self) -> Tensor:
        """(E,) in ascending order."""
        return self.owners * self.num_tokens + self.tokens

    @property
    def shorter(self) -> Tensor:
        """(E,) keys, in the level below, of the n-grams without their oldest token."""
        return self.contexts[self.owners] // self.num_tokens * self.num_tokens + self.tokens

    def per_context(self, values: Tensor) -> Tensor:
        """(E,) -> (C,) sums in float64."""
        return torch.zeros(len(self.contexts), dtype=torch.float64).index_add_(0, self.owners, values.double())


def count_ngrams(
    batches: Iterable[Tensor], order: int, num_tokens: int, carried: bool = False
) -> tuple[Tensor, Tensor]:
    """Count the n-grams that end in a symbol or EOS: SOS and PAD are never predicted.

    Args:
        batches: (N, T) token rows each; an n-gram lies within a row, and a row's first token is no target.
        carried: a row's first token is the last one of that row of the batch before, and n-grams go on across.

    Returns:
        (U, order) different ones: target, the token before it, the one before that, ...; NONE before the row's first.
        And (U,) how often each has been seen.
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
    """(N, order) and (N,) -> each different row once, and the sums of their counts."""
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
    """(length,) long sums of counts."""
    return torch.zeros(length, dtype=torch.long).index_add_(0, places, counts)


def levels_of(ngrams: Tensor, counts: Tensor, num_tokens: int) -> list[Level]:
    """``count_ngrams``'s n-grams by the length of their context, from 0 to order - 1."""
    levels, numbers = [], torch.zeros(len(ngrams), dtype=torch.long)
    for length in range(ngrams.shape[1]):
        contexts = torch.zeros(1, dtype=torch.long)
        if length:
            there = ngrams[:, length] != NONE
            ngrams, counts, numbers = ngrams[there], counts[there], numbers[there]
            contexts, numbers = (numbers * num_tokens + ngrams[:, length]).unique(return_inverse=True)
        keys, inverse = (numbers * num_tokens + ngrams[:, 0]).unique(return_inverse=True)
        totals = bincount(inverse, counts, len(keys))
        levels.append(Level(num_tokens, contexts, keys // num_tokens, keys % num_tokens, totals))
    return levels


def continuation_counts(levels: list[Level]) -> list[Tensor]:
    """(E,) for each level: behind how many different tokens an n-gram has been seen (Kneser & Ney 1995); of the longest
    ones, and of those that begin with SOS, which nothing precedes, how often."""
    found = []
    for level, longer in pairwise(levels):
        places = torch.searchsorted(level.keys, longer.shorter)
        # At least 1: an n-gram may be seen at the beginning of a row alone.
        counts = bincount(places, torch.ones_like(places), len(level.counts)).clamp_min(1)
        begins = (level.contexts % level.num_tokens == SOS) & (level is not levels[0])
        found.append(torch.where(begins[level.owners], level.counts, counts))
    return [*found, levels[-1].counts]


def pruned(levels: list[Level], min_count: list[int]) -> tuple[list[Level], list[Tensor]]:
    """The levels without n-grams seen fewer than ``min_count`` times, an order each, in no descending order; and (E,)
    bool which are kept.

    What a kept n-gram ends with has been seen as often, so that its context can still be found.
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
    """The numbers of contexts, -1 where there is none.

    Args:
        contexts: (C,) a level's keys.
        shorter: any shape: numbers of the contexts without their oldest token, or -1.
        token: that token, or NONE.
    """
    if not len(contexts):
        return torch.full_like(shorter, -1)
    keys = shorter * num_tokens + token
    places = torch.searchsorted(contexts, keys).clamp_max(len(contexts) - 1)
    return torch.where((contexts[places] == keys) & (shorter >= 0) & (token >= 0), places, -1)
