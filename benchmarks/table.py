"""The table of comparisons, in Markdown. Each row is printed as soon as it has been measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TextIO

from benchmarks.comparison import Comparison, measure

COLUMNS = ("", "ours", "peer", "peer's", "speedup", "goal", "")
INSTALL = 'pip install -c constraints.txt ".[bench]"'


def run(comparisons: Iterator[Comparison]) -> None:
    """Print the table of one script."""
    table = Table()
    table.begin()
    table.add("this script", lambda: comparisons)


class Table:
    """Prints rows, and writes them to a file if one is given.

    Args:
        above: a line above the table.
    """

    def __init__(self, file: TextIO | None = None, above: str = ""):
        self.file, self.failed = file, 0
        if above:
            self.print(above)

    def begin(self, columns: tuple[str, ...] = COLUMNS) -> None:
        self.print("\n| " + " | ".join(columns) + " |")
        self.print("|" + " --- |" * len(columns))

    def print(self, line: str) -> None:
        print(line, flush=True)
        if self.file is not None:
            print(line, file=self.file, flush=True)

    def add(self, name: str, comparisons: Callable[[], Iterator[Comparison]]) -> None:
        """Add a row for each comparison. If one fails, or the script itself does, its row is the error message."""
        try:
            for comparison in comparisons():
                try:
                    self.print(row(comparison))
                except Exception as error:
                    self.fail(comparison.name, error)
        except Exception as error:
            self.fail(name, error)

    def fail(self, name: str, error: Exception) -> None:
        self.failed += 1
        self.print(f"| {name} | {first_line(error)} |" + " |" * (len(COLUMNS) - 2))


def first_line(error: Exception) -> str:
    if isinstance(error, ImportError) and error.name:
        return f"not installed: {error.name}; {INSTALL}"
    return f"{type(error).__name__}: {error}".splitlines()[0].replace("|", "/")


def row(comparison: Comparison) -> str:
    timing = measure(comparison)
    remarks = ["met" if timing.ratio >= comparison.at_least else "not met", comparison.note]
    once = [name for name, number in zip(("ours", "peer"), timing.repeats) if number < comparison.repeats]
    remarks += [f"{' and '.join(once)} measured once"] if once else []
    cells = (
        comparison.name,
        duration(timing.ours),
        comparison.peer_name,
        duration(timing.peer),
        f"{timing.ratio:.2f}",
        f"{comparison.at_least:g}",
        "; ".join(filter(None, remarks)),
    )
    return "| " + " | ".join(cells) + " |"


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
