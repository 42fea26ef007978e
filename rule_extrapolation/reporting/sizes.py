"""Whether models that are compared differ in size."""

from __future__ import annotations

from collections.abc import Collection

SIZE_FACTOR = 1.5
"""Models whose numbers of weights differ by more are said to differ in size."""


def differing_sizes(sizes: Collection[tuple[int, str]]) -> str | None:
    """A line that names the smallest and the largest model, or None if they do not differ by more than SIZE_FACTOR.

    >>> differing_sizes([(50_000, "lstm"), (200_000, "mamba"), (60_000, "linear")])
    'Models differ in size: lstm has 50,000 weights, mamba 200,000. sizes=matched gives them about as many.'

    Args:
        sizes: numbers of weights and names.
    """
    if not sizes:
        return None
    (least, smallest), (most, largest) = min(sizes), max(sizes)
    if most <= SIZE_FACTOR * least:
        return None
    return (
        f"Models differ in size: {smallest} has {least:,} weights, {largest} {most:,}. "
        "sizes=matched gives them about as many."
    )
