"""Comparisons of our code with a peer that does the same work, measured alternately in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

REPEATS = 7
SHORTEST = 0.05
"""The minimum duration of a measurement in seconds. Functions that take less are called several times."""
LONGEST = 20.0
"""Functions that take more seconds than this are measured only once."""


@dataclass
class Comparison:
    """Two functions that do the same work.

    Args:
        name: the row's name in the table.
        ours, peer: called without arguments; their results are ignored.
        peer_name: a description of the peer, with its version.
        at_least: the goal for the speedup, the peer's time divided by ours.
        repeats: the number of measurements of each function.
        note: a remark for the table, such as the two functions' numerical errors.
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
    """Median times in seconds, and the number of measurements of each function."""

    ours: float
    peer: float
    repeats: tuple[int, int]

    @property
    def ratio(self) -> float:
        return self.peer / self.ours


def measure(comparison: Comparison) -> Timing:
    """The medians of alternating measurements, after one call of each function to warm up.

    A function that takes longer than LONGEST is measured once, without a warm-up.
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
    """How many calls make a measurement. The first call may be slower than later ones: the function is timed again
    unless that call took long."""
    return 1 if first > 20 * SHORTEST else max(1, round(SHORTEST / seconds_per_call(function, 1)))


def seconds_per_call(function: Callable[[], object], number: int) -> float:
    gc.collect()
    started = time.perf_counter()
    for _ in range(number):
        function()
    return (time.perf_counter() - started) / number
