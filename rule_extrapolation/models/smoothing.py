"""From counts to probabilities: the smoothings of n-gram models.

Whatever the smoothing, the outcome is what an ARPA file has: the probability of every n-gram that is kept, and for each
context a weight. A token that was not seen behind a context has that weight times its probability behind the context
without its oldest token; behind the empty context, times 1 / number of words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rule_extrapolation.ops.ngrams import Level, continuation_counts, levels_of, look_up, pruned

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""Of n-grams seen once, twice and more often, where the counts do not tell: KenLM's (Heafield et al. 2013)."""
EM_STEPS, EM_TOLERANCE = 200, 1e-4


@dataclass
class Table:
    """A level's n-grams with their probabilities."""

    level: Level
    probabilities: Tensor
    """(E,) float64."""
    weights: Tensor
    """(C,) float64, of what was not seen behind each context."""


@dataclass(frozen=True)
class Smoothing:
    """
    Args:
        name: mle, laplace, add_k, backoff, interpolation or kneser_ney.
        k: what add_k adds to each count.
        discount: of backoff and kneser_ney, from every count; None: estimated.
        min_count: for each order, how often an n-gram has been seen that is kept; in no descending order.
    """

    name: str
    k: float
    discount: float | None
    min_count: list[int]

    @property
    def added(self) -> float | None:
        """What is added to each count, where the longest context alone counts; else None."""
        return {"mle": 0.0, "laplace": 1.0, "add_k": self.k}.get(self.name)

    def tables(
        self, ngrams: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], num_tokens: int, num_words: int
    ) -> list[Table]:
        """A table for each length of context, from 0 on.

        Args:
            ngrams, held_out: as ``count_ngrams`` counts them.
            num_words: how many of the tokens can be predicted.
        """
        whole = levels_of(*ngrams, num_tokens)
        levels, kept = pruned(whole, self.min_count)
        if self.added is not None:
            return [add_constant(level, self.added, num_words) for level in levels]
        if self.name == "interpolation":
            shares = interpolated_shares(levels, held_out, num_words)
        else:
            counts = continuation_counts(whole) if self.name == "kneser_ney" else [level.counts for level in whole]
            shares = [discounted(*each, self.discount)[mask] for *each, mask in zip(whole, counts, kept)]
        tables: list[Table] = []
        for level, share in zip(levels, shares):
            below = torch.full_like(share, 1 / num_words)
            if tables:
                below = tables[-1].probabilities[torch.searchsorted(tables[-1].level.keys, level.shorter)]
            combine = backed_off if self.name == "backoff" else interpolated
            tables.append(combine(level, share, below, num_words))
        return tables


def add_constant(level: Level, added: float, num_words: int) -> Table:
    """(c + k) / (N + k V); the longest context alone counts, and what was not seen is evenly probable."""
    whole = level.per_context(level.counts) + added * num_words
    weights = torch.where(whole > 0, added * num_words / whole, 1)
    return Table(level, (level.counts + added) / whole[level.owners], weights)


def interpolated(level: Level, shares: Tensor, below: Tensor, num_words: int) -> Table:
    """Each n-gram has its share, and of what the shares leave as much as the shorter context gives it."""
    left = (1 - level.per_context(shares)).clamp_min(0)
    return Table(level, shares + left[level.owners] * below, left)


def backed_off(level: Level, shares: Tensor, below: Tensor, num_words: int) -> Table:
    """Each n-gram has its share; what is left is for those that were not seen (Katz 1987, eq. 16-19)."""
    seen, seen_below = level.per_context(shares), level.per_context(below)
    # Behind a context that has seen all words there is nobody to leave anything to.
    nobody = (level.per_context(torch.ones_like(shares)) >= num_words) | (1 - seen_below < 1e-12)
    weights = torch.where(nobody, 0, (1 - seen) / (1 - seen_below))
    return Table(level, shares / torch.where(nobody, seen, 1)[level.owners], weights)


def discounted(level: Level, counts: Tensor, discount: float | None) -> Tensor:
    """(E,) counts, less a discount, over their context's sum."""
    once, twice, more = discounts(counts) if discount is None else (discount,) * 3
    of_count = torch.tensor([0.0, once, twice, more], dtype=torch.float64)
    return (counts - of_count[counts.clamp_max(3)]) / level.per_context(counts)[level.owners]


def discounts(counts: Tensor) -> tuple[float, float, float]:
    """Of counts of 1, 2 and more (Chen & Goodman 1999, eq. 17), FALLBACK_DISCOUNTS where too few n-grams are rare."""
    n = torch.bincount(counts.clamp_max(5), minlength=6).tolist()
    if not all(n[1:5]):
        return FALLBACK_DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    once, twice, more = (i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3))
    return (once, twice, more) if min(once, twice, more) > 0 else FALLBACK_DISCOUNTS


def interpolated_shares(levels: list[Level], held_out: tuple[Tensor, Tensor], num_words: int) -> list[Tensor]:
    """(E,) for each level: its weight times relative frequencies (Jelinek & Mercer 1980).

    Contexts of one length that were seen about as often, to a power of two, have a weight in common.
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
    """By expectation maximization, the weights of relative frequencies, of each length of context and size.

    The most probable weights of the held-out n-grams, with a prior of one more that each explains and one that it does
    not: so none is 0 or 1.

    Args:
        totals, sizes: (C,) of each level: how often a context was seen, and the size it counts as, from 1.

    Returns:
        For each level, the weights by size; that of size 0, of contexts that are not known, has no meaning.
    """
    ngrams, counts = held_out
    counts, numbers = counts.double(), torch.zeros_like(counts)
    frequencies, of_size = [], []
    for length, (level, total, size) in enumerate(zip(levels, totals, sizes)):
        if length:
            numbers = look_up(level.contexts, numbers, ngrams[:, length], level.num_tokens)
        places = look_up(level.keys, numbers, ngrams[:, 0], level.num_tokens)
        known = numbers >= 0
        if not len(total):
            frequencies.append(torch.zeros_like(counts))
            of_size.append(torch.zeros_like(numbers))
            continue
        seen = torch.where(places >= 0, level.counts[places], 0)
        frequencies.append(torch.where(known, seen / total[numbers], 0))
        of_size.append(torch.where(known, size[numbers], 0))
    weights = [torch.full((1 + max(size.tolist(), default=0),), 0.5, dtype=torch.float64) for size in sizes]
    for _ in range(EM_STEPS):
        before = weights
        weights = em_step(before, frequencies, of_size, counts, num_words)
        if max((new - old).abs().max().item() for new, old in zip(weights, before)) < EM_TOLERANCE:
            break
    return weights


def em_step(
    weights: list[Tensor], frequencies: list[Tensor], of_size: list[Tensor], counts: Tensor, num_words: int
) -> list[Tensor]:
    """One step of ``fit_weights``.

    Args:
        frequencies, of_size: (M,) of each level: the held-out n-grams' relative frequencies, and their contexts' sizes.
        counts: (M,) how often each comes.
    """
    own = [torch.where(size > 0, weight[size], 0) for weight, size in zip(weights, of_size)]
    mixed = [torch.full_like(counts, 1 / num_words)]
    for weight, frequency in zip(own, frequencies):
        mixed.append(weight * frequency + (1 - weight) * mixed[-1])
    updated, reached = [], counts
    for k in reversed(range(len(weights))):
        explained = reached * own[k] * frequencies[k] / mixed[k + 1]
        ones = torch.ones_like(weights[k])
        updated.append(ones.index_add(0, of_size[k], explained) / (2 * ones).index_add(0, of_size[k], reached))
        reached = reached - explained
    return updated[::-1]
