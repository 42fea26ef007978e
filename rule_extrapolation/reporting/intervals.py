"""95% intervals, and the paired test of two architectures, by scipy.stats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
MIN_SEEDS = 3
"""The least number of common seeds that two architectures are tested on."""
ROUNDING = 1e-9
"""Figures that differ by less are the same."""
INTERVALS = (
    "Ours: the mean with its 95% interval, which is a t interval over seeds. For a single run, and for seeds that do "
    "not differ, it is an exact binomial (Clopper-Pearson) interval over the different prompts of one run."
)
"""Which intervals the tables and figures have, for captions."""

DIGITS = 2
"""Of the interval of a share."""

Interval = tuple[float, float] | tuple[None, None]


def share_interval(low: float, high: float) -> str:
    """The interval of a share, rounded outwards, so that it holds the mean however that is rounded.

    >>> share_interval(0.2749, 0.2751)
    '[0.27, 0.28]'
    """
    scale = 10**DIGITS
    # Rounded first, since 0.29 * 100 is less than 29.
    low, high = math.floor(round(low * scale, 6)) / scale, math.ceil(round(high * scale, 6)) / scale
    return f"[{low:.{DIGITS}f}, {high:.{DIGITS}f}]"


def statistics_of(values: Sequence[float], is_share: bool) -> tuple[float, float | None, Interval]:
    """Mean, sample standard deviation and t interval of the mean.

    Of one value, the last two are None. Values that do not differ have no interval: they say nothing of how much others
    would.

    Args:
        is_share: clip the interval to [0, 1].
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None, (None, None)
    std = statistics.stdev(values)
    if max(values) - min(values) < ROUNDING:
        return mean, std, (None, None)
    low, high = t_interval(mean, std, len(values))
    return mean, std, (max(low, 0.0), min(high, 1.0)) if is_share else (low, high)


def t_interval(mean: float, std: float, n: int) -> tuple[float, float]:
    """The interval of the mean of n normal values with that sample standard deviation.

    >>> [round(end, 3) for end in t_interval(0.5, 0.1, 3)]
    [0.252, 0.748]
    """
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / n**0.5
    return mean - half, mean + half


def binomial_interval(share: float, n: int) -> Interval:
    """The exact (Clopper-Pearson) interval of a share of n; without ends if n is 0.

    A share that is no multiple of 1/n, as of a set with repeated prompts, is rounded to one, and the interval extended
    to hold the share itself.

    >>> [round(end, 3) for end in binomial_interval(0.5, 10)]
    [0.187, 0.813]
    """
    from scipy.stats import binomtest

    if n == 0:
        return None, None
    interval = binomtest(round(share * n), n).proportion_ci(CONFIDENCE, "exact")
    return min(float(interval.low), share), max(float(interval.high), share)


def paired_t_test(differences: Sequence[float]) -> tuple[float, Interval]:
    """Two-sided p and the interval of the mean of paired differences (scipy.stats.ttest_rel).

    >>> p, (low, high) = paired_t_test([0.1, 0.2, 0.3])
    >>> round(p, 4), round(low, 3), round(high, 3)
    (0.0742, -0.048, 0.448)
    """
    from scipy.stats import ttest_rel

    result = ttest_rel(differences, np.zeros(len(differences)))
    interval = result.confidence_interval(CONFIDENCE)
    return float(result.pvalue), (float(interval.low), float(interval.high))


def holm(ps: Sequence[float]) -> list[float]:
    """The p values corrected for their number (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(ps), 0.0
    for i, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - i) * ps[place]))
        corrected[place] = least
    return corrected
