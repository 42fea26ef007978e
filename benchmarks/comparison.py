"""Ours beside a peer that does the same work, in turn, in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

REPEATS = 7
SHORTEST = 0.05
"""Seconds that a measurement takes at least; what is quicker is called several times."""
LONGEST = 20.0
"""Seconds that a function may take to be measured more than once."""


@dataclass
class Comparison:
    """Two functions with the same work to do.

    Args:
        ours, peer: called with nothing; what they return is not used.
        peer_name: what the peer is, with its version.
        at_least: how many times as quick as the peer ours should be.
        repeats: measurements of each.
        note: what else is to be said of the two, such as their errors.
    """

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    peer_name: str
    at_least: float
    repeats: int = REPEATS
    note: str = ""


@dataclass
class Timing:
    """Medians, in seconds, and how many measurements of each there were."""

    ours: float
    peer: float
    repeats: tuple[int, int]

    @property
    def ratio(self) -> float:
        return self.peer / self.ours


def measure(comparison: Comparison) -> Timing:
    """Medians over repeated, interleaved measurements, after one call of each to warm up.

    What takes longer than LONGEST is measured once, without a warm-up.
    """
    functions = (comparison.ours, comparison.peer)
    firsts = [seconds_per_call(function, 1) for function in functions]
    calls = [calls_to_time(function, first) for function, first in zip(functions, firsts)]
    seconds: list[list[float]] = [[first] if first > LONGEST else [] for first in firsts]
    for _ in range(comparison.repeats):
        for function, first, number, taken in zip(functions, firsts, calls, seconds):
            if first <= LONGEST:
                taken.append(seconds_per_call(function, number))
    ours, peer = map(statistics.median, seconds)
    return Timing(ours, peer, tuple(map(len, seconds)))


def calls_to_time(function: Callable[[], object], first: float) -> int:
    """How many calls make a measurement. The first one may have been slower than others, and tells only if it took
    long."""
    return 1 if first > 20 * SHORTEST else max(1, round(SHORTEST / seconds_per_call(function, 1)))


def seconds_per_call(function: Callable[[], object], number: int) -> float:
    gc.collect()
    started = time.perf_counter()
    for _ in range(number):
        function()
    return (time.perf_counter() - started) / number
