"""A naive implementation of n-gram models with dictionaries, token by token."""

from collections import Counter, defaultdict
from math import log2

from rule_extrapolation.core.tokens import PAD, SOS

FALLBACK = (0.5, 1.0, 1.5)


class NaiveNGrams:
    """``probability(token, context)`` for each smoothing method. The context is a tuple of tokens, the last one
    last."""

    def __init__(self, rows, held_out, order, num_words, smoothing, k=0.1, discount=None, min_count=None):
        self.order, self.num_words, self.smoothing, self.discount = order, num_words, smoothing, discount
        self.added = {"mle": 0, "laplace": 1, "add_k": k}.get(smoothing)
        self.counts = self.count(rows)
        self.kept = [
            {
                context: kept
                for context, followers in level.items()
                if (kept := {token: n for token, n in followers.items() if n >= (min_count or [1] * order)[length]})
            }
            for length, level in enumerate(self.counts)
        ]
        self.weights = self.fit(held_out) if smoothing == "interpolation" else {}
        self.shares = [{context: self.share(context) for context in level} for level in self.kept]

    def targets(self, rows):
        """All (context, token) to predict. At the beginning of a row the context is shorter."""
        for row in rows:
            for t in range(1, len(row)):
                if row[t] not in (SOS, PAD):
                    yield tuple(row[max(0, t - self.order + 1) : t]), row[t]

    def count(self, rows):
        counts = [defaultdict(Counter) for _ in range(self.order)]
        for context, token in self.targets(rows):
            for length in range(len(context) + 1):
                counts[length][context[len(context) - length :]][token] += 1
        return counts

    def adjusted(self, context):
        """The counts from which a context's tokens are discounted."""
        length, counts = len(context), self.counts[len(context)][context]
        if self.smoothing != "kneser_ney" or length == self.order - 1 or context[:1] == (SOS,):
            return counts
        longer = [followers for other, followers in self.counts[length + 1].items() if other[1:] == context]
        return {token: max(1, sum(followers[token] > 0 for followers in longer)) for token in counts}

    def discounts(self, length):
        if self.discount is not None:
            return (self.discount,) * 3
        n = Counter(c for context in self.counts[length] for c in self.adjusted(context).values())
        if not all(n[i] for i in (1, 2, 3, 4)):
            return FALLBACK
        y = n[1] / (n[1] + 2 * n[2])
        found = tuple(i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3))
        return found if min(found) > 0 else FALLBACK

    def share(self, context):
        """The probability of each kept token without the contribution of the shorter context."""
        kept = self.kept[len(context)][context]
        if self.smoothing == "interpolation":
            weight = self.weights[self.size(context)]
            return {token: weight * n / sum(kept.values()) for token, n in kept.items()}
        counts, discounts = self.adjusted(context), self.discounts(len(context))
        return {token: (counts[token] - discounts[min(counts[token], 3) - 1]) / sum(counts.values()) for token in kept}

    def probability(self, token, context):
        kept = self.kept[len(context)].get(context, {})
        if self.added is not None:
            total = sum(kept.values()) + self.added * self.num_words
            return (kept.get(token, 0) + self.added) / total if total else 1 / self.num_words
        below = self.probability(token, context[1:]) if context else 1 / self.num_words
        if not kept:
            return below
        shares = self.shares[len(context)][context]
        if self.smoothing != "backoff":
            return shares.get(token, 0) + (1 - sum(shares.values())) * below
        if len(shares) == self.num_words:
            return shares[token] / sum(shares.values())
        if token in shares:
            return shares[token]
        seen_below = sum(self.probability(t, context[1:]) if context else 1 / self.num_words for t in shares)
        return (1 - sum(shares.values())) / (1 - seen_below) * below

    # Interpolation

    def size(self, context):
        return len(context), int(log2(sum(self.kept[len(context)][context].values())))

    def fit(self, held_out):
        sizes = {self.size(context) for level in self.kept for context in level}
        weights, change = dict.fromkeys(sizes, 0.5), 1
        while change >= 1e-4:
            explained, reached = Counter(dict.fromkeys(sizes, 1)), Counter(dict.fromkeys(sizes, 2))
            for context, token in self.targets(held_out):
                contexts = [context[len(context) - length :] for length in range(len(context) + 1)]
                contexts = [context for context in contexts if context in self.kept[len(context)]]
                mixed = [1 / self.num_words]
                for known in contexts:
                    kept, weight = self.kept[len(known)][known], weights[self.size(known)]
                    mixed.append(weight * kept.get(token, 0) / sum(kept.values()) + (1 - weight) * mixed[-1])
                remaining = 1
                for i, known in reversed([*enumerate(contexts)]):
                    kept, size = self.kept[len(known)][known], self.size(known)
                    reached[size] += remaining
                    part = remaining * weights[size] * kept.get(token, 0) / sum(kept.values()) / mixed[i + 1]
                    explained[size] += part
                    remaining -= part
            updated = {size: explained[size] / reached[size] for size in sizes}
            change = max(abs(updated[size] - weights[size]) for size in sizes)
            weights = updated
        return weights
