"""Smoothing of n-gram models: from counts to probabilities.

The result is that of an ARPA file: the probability of every n-gram that is kept, and a back-off weight for each
context. The probability of a token that was not seen after a context is this weight times its probability after the
context without its oldest token; after the empty context, it is the weight divided by the number of words.

Shapes: a level has E n-grams and C contexts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rule_extrapolation.ops.ngrams import Level, continuation_counts, levels_of, look_up, pruned

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""Discounts of n-grams seen once, twice and more often, if too few n-grams are rare to estimate them: KenLM's defaults
(Heafield et al. 2013)."""
EM_STEPS, EM_TOLERANCE = 200, 1e-4


@dataclass
class Table:
    """The n-grams of a level with their probabilities."""

    level: Level
    probabilities: Tensor
    """(E,) float64."""
    weights: Tensor
    """(C,) float64: the back-off weight of each context."""


@dataclass(frozen=True)
class Smoothing:
    """A smoothing method and its settings.

    Args:
        name: mle, laplace, add_k, backoff, interpolation or kneser_ney.
        k: what add_k adds to each count.
        discount: what backoff and kneser_ney subtract from every count. None: estimate it.
        min_count: for each order, the minimum count of an n-gram that is kept. Must not descend.
    """

    name: str
    k: float
    discount: float | None
    min_count: list[int]

    @property
    def added(self) -> float | None:
        """What is added to each count, or None if the method uses shorter contexts instead."""
        return {"mle": 0.0, "laplace": 1.0, "add_k": self.k}.get(self.name)

    def tables(
        self, ngrams: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], num_tokens: int, num_words: int
    ) -> list[Table]:
        """A table for each length of context, from 0 on.

        Args:
            ngrams, held_out: n-grams and counts of training and validation, as from ``count_ngrams``.
            num_words: the number of tokens that can be predicted.
        """
        all_levels = levels_of(*ngrams, num_tokens)
        levels, kept = pruned(all_levels, self.min_count)
        if self.added is not None:
            return [add_constant(level, self.added, num_words) for level in levels]
        if self.name == "interpolation":
            shares = interpolated_shares(levels, held_out, num_words)
        else:
            by_continuation = self.name == "kneser_ney"
            counts = continuation_counts(all_levels) if by_continuation else [level.counts for level in all_levels]
            shares = [discounted(*each, self.discount)[mask] for *each, mask in zip(all_levels, counts, kept)]
        tables: list[Table] = []
        for level, share in zip(levels, shares):
            below = torch.full_like(share, 1 / num_words)
            if tables:
                below = tables[-1].probabilities[torch.searchsorted(tables[-1].level.keys, level.shorter)]
            combine = backed_off if self.name == "backoff" else interpolated
            tables.append(combine(level, share, below, num_words))
        return tables


def add_constant(level: Level, added: float, num_words: int) -> Table:
    """(c + k) / (N + k V), where c counts the n-gram, N its context, and V is the number of words."""
    totals = level.per_context(level.counts) + added * num_words
    weights = torch.where(totals > 0, added * num_words / totals, 1)
    return Table(level, (level.counts + added) / totals[level.owners], weights)


def interpolated(level: Level, shares: Tensor, below: Tensor, num_words: int) -> Table:
    """The probability of an n-gram is its share plus the remaining mass times its probability in the shorter context.

    Args:
        shares: (E,) discounted relative frequencies.
        below: (E,) probabilities after the shorter context.
    """
    remaining = (1 - level.per_context(shares)).clamp_min(0)
    return Table(level, shares + remaining[level.owners] * below, remaining)


def backed_off(level: Level, shares: Tensor, below: Tensor, num_words: int) -> Table:
    """The probability of an n-gram is its share; unseen n-grams divide the remaining mass (Katz 1987, equations 16-19).

    Args:
        shares: (E,) discounted relative frequencies.
        below: (E,) probabilities after the shorter context.
    """
    seen, seen_below = level.per_context(shares), level.per_context(below)
    # After a context that was followed by every word, no n-gram is unseen, and the shares are normalised instead.
    complete = (level.per_context(torch.ones_like(shares)) >= num_words) | (1 - seen_below < 1e-12)
    weights = torch.where(complete, 0, (1 - seen) / (1 - seen_below))
    return Table(level, shares / torch.where(complete, seen, 1)[level.owners], weights)


def discounted(level: Level, counts: Tensor, discount: float | None) -> Tensor:
    """(E,) counts minus a discount, divided by the sum of their context's counts. None: estimate the discounts."""
    once, twice, more = discounts(counts) if discount is None else (discount,) * 3
    by_count = torch.tensor([0.0, once, twice, more], dtype=torch.float64)
    return (counts - by_count[counts.clamp_max(3)]) / level.per_context(counts)[level.owners]


def discounts(counts: Tensor) -> tuple[float, float, float]:
    """Discounts of counts of 1, 2 and more (Chen & Goodman 1999, equation 17), or FALLBACK_DISCOUNTS."""
    n = torch.bincount(counts.clamp_max(5), minlength=6).tolist()
    if not all(n[1:5]):
        return FALLBACK_DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    once, twice, more = (i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3))
    return (once, twice, more) if min(once, twice, more) > 0 else FALLBACK_DISCOUNTS


def interpolated_shares(levels: list[Level], held_out: tuple[Tensor, Tensor], num_words: int) -> list[Tensor]:
    """(E,) for each level: the context's weight times the relative frequency (Jelinek & Mercer 1980).

    Contexts of one length share a weight if their counts have the same binary exponent.
    """
    totals = [level.per_context(level.counts) for level in levels]
    sizes = [total.frexp().exponent.long() for total in totals]
    weights = fit_weights(levels, totals, sizes, held_out, num_words)
    return [
        (weight[size] / total)[level.owners] * level.counts
        for level, total, size, weight in zip(levels, totals, sizes, weights)
    ]


def fit_weights(
    levels: list[Level], totals: list[Tensor], sizes: list[Tensor], held_out: tuple[Tensor, Tensor], num_words: int
) -> list[Tensor]:
    """Fit the weight of the relative frequencies for each length and size of context, by expectation maximization.

    The weights maximise the posterior of the held-out n-grams. The prior adds one n-gram that each weight explains and
    one that it does not, so that no weight is 0 or 1.

    Args:
        totals, sizes: (C,) for each level: how often a context occurs, and its size class, from 1 on.

    Returns:
        For each level, the weights by size class. Class 0 stands for unknown contexts and has no meaning.
    """
    ngrams, counts = held_out
    counts, numbers = counts.double(), torch.zeros_like(counts)
    frequencies, ngram_sizes = [], []
    for length, (level, total, size) in enumerate(zip(levels, totals, sizes)):
        if length:
            numbers = look_up(level.contexts, numbers, ngrams[:, length], level.num_tokens)
        places = look_up(level.keys, numbers, ngrams[:, 0], level.num_tokens)
        known = numbers >= 0
        if not len(total):
            frequencies.append(torch.zeros_like(counts))
            ngram_sizes.append(torch.zeros_like(numbers))
            continue
        seen = torch.where(places >= 0, level.counts[places], 0)
        frequencies.append(torch.where(known, seen / total[numbers], 0))
        ngram_sizes.append(torch.where(known, size[numbers], 0))
    weights = [torch.full((1 + max(size.tolist(), default=0),), 0.5, dtype=torch.float64) for size in sizes]
    for _ in range(EM_STEPS):
        before = weights
        weights = em_step(before, frequencies, ngram_sizes, counts, num_words)
        if max((new - old).abs().max().item() for new, old in zip(weights, before)) < EM_TOLERANCE:
            break
    return weights


def em_step(
    weights: list[Tensor], frequencies: list[Tensor], ngram_sizes: list[Tensor], counts: Tensor, num_words: int
) -> list[Tensor]:
    """One step of ``fit_weights``.

    Args:
        frequencies, ngram_sizes: (M,) for each level: relative frequencies of the held-out n-grams, and size classes of
            their contexts.
        counts: (M,) how often each held-out n-gram occurs.
    """
    own = [torch.where(size > 0, weight[size], 0) for weight, size in zip(weights, ngram_sizes)]
    mixed = [torch.full_like(counts, 1 / num_words)]
    for weight, frequency in zip(own, frequencies):
        mixed.append(weight * frequency + (1 - weight) * mixed[-1])
    updated, reached = [], counts
    for k in reversed(range(len(weights))):
        explained = reached * own[k] * frequencies[k] / mixed[k + 1]
        ones = torch.ones_like(weights[k])
        updated.append(ones.index_add(0, ngram_sizes[k], explained) / (2 * ones).index_add(0, ngram_sizes[k], reached))
        reached = reached - explained
    return updated[::-1]
