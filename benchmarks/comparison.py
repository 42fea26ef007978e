"""Ours beside a peer that does the same work, in turn, in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

REPEATS = 7
SHORTEST = 0.05
"""Seconds that a measurement takes at least; what is quicker is called several times."""


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
    """Medians, in seconds."""

    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        return self.peer / self.ours


def measure(comparison: Comparison) -> Timing:
    """Medians over repeated, interleaved measurements, after one call of each to warm up."""
    functions = (comparison.ours, comparison.peer)
    calls = [calls_to_time(function) for function in functions]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(comparison.repeats):
        for function, number, taken in zip(functions, calls, seconds):
            taken.append(seconds_per_call(function, number))
    return Timing(*map(statistics.median, seconds))


def calls_to_time(function: Callable[[], object]) -> int:
    """How many calls make a measurement. Warms up on the way."""
    function()
    return max(1, round(SHORTEST / seconds_per_call(function, 1)))


def seconds_per_call(function: Callable[[], object], number: int) -> float:
    gc.collect()
    started = time.perf_counter()
    for _ in range(number):
        function()
    return (time.perf_counter() - started) / number


def report(comparisons: Iterable[Comparison]) -> None:
    """A line for each, once it is measured."""
    for comparison in comparisons:
        timing = measure(comparison)
        times = f"{1e3 * timing.ours:.2f} ms, {comparison.peer_name} {1e3 * timing.peer:.2f} ms"
        ratio = f"{timing.ratio:.2f}x (at least {comparison.at_least}x)"
        print(f"{comparison.name}: {times}: {ratio} {comparison.note}".rstrip(), flush=True)
