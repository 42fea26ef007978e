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
"""Seconds that a peer may take to be measured more than once."""


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
    """Medians, in seconds, and how many measurements of the peer there were."""

    ours: float
    peer: float
    peer_repeats: int

    @property
    def ratio(self) -> float:
        return self.peer / self.ours


def measure(comparison: Comparison) -> Timing:
    """Medians over repeated, interleaved measurements, after one call of each to warm up.

    A peer that takes longer than LONGEST is measured once, without a warm-up.
    """
    first = seconds_per_call(comparison.peer, 1)
    functions = [comparison.ours] if first > LONGEST else [comparison.ours, comparison.peer]
    calls = [calls_to_time(function) for function in functions]
    seconds: list[list[float]] = [[], []]
    for _ in range(comparison.repeats):
        for function, number, taken in zip(functions, calls, seconds):
            taken.append(seconds_per_call(function, number))
    ours, peer = seconds
    return Timing(statistics.median(ours), statistics.median(peer or [first]), len(peer) or 1)


def calls_to_time(function: Callable[[], object]) -> int:
    """How many calls make a measurement. Warms up on the way: a call that takes long is not repeated for that."""
    if seconds_per_call(function, 1) > 20 * SHORTEST:
        return 1
    return max(1, round(SHORTEST / seconds_per_call(function, 1)))


def seconds_per_call(function: Callable[[], object], number: int) -> float:
    gc.collect()
    started = time.perf_counter()
    for _ in range(number):
        function()
    return (time.perf_counter() - started) / number
