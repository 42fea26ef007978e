"""Eight seeds in one command, seeds=8, compared with one command after the other. Times are of whole commands."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator

from benchmarks.comparison import Comparison
from benchmarks.table import run

APART = "each seed has a process of its own, since one pass over all seeds would not be faster"


def command(*overrides: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        called = [sys.executable, "-m", "rule_extrapolation.runner", f"hydra.run.dir={folder}/run", *overrides]
        subprocess.run(called, check=True, capture_output=True)


def comparisons(seeds: int = 8, overrides: tuple[str, ...] = ()) -> Iterator[Comparison]:
    rows = {"default run": ((), 2.5, ""), "model=lstm, 20 steps": (("model=lstm", "trainer.max_steps=20"), 1.0, APART)}
    for name, (settings, at_least, note) in rows.items():
        settings = ("logger=csv", *settings, *overrides)
        yield Comparison(
            name=f"{seeds} seeds, {name}",
            ours=lambda settings=settings: command(f"seeds={seeds}", *settings),
            peer=lambda settings=settings: [command(f"seed={seed}", *settings) for seed in range(seeds)],
            peer_name=f"{seeds} runs one after the other",
            at_least=at_least,
            note=note,
        )


if __name__ == "__main__":
    run(comparisons())
