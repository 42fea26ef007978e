"""What a sweep prints: the runs that it skips, and at its end how each run ended."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from rule_extrapolation.reporting.sizes import differing_sizes

NAMED = 5
"""Up to this many skipped runs are named; more are only counted."""


def print_skipped(runs: Collection[Path]) -> None:
    """Print that runs are skipped since they have finished."""
    if len(runs) <= NAMED:
        for run in sorted(runs):
            print(f"Skipped (already finished): {run}", flush=True)
    else:
        print(f"Skipped (already finished): {len(runs)} runs", flush=True)


def print_sizes(sizes: Mapping[str, Collection[tuple[int, str]]]) -> None:
    """Print a line for the first language on which models differ in size.

    Args:
        sizes: by language, numbers of weights and names of models.
    """
    lines = ((language, line) for language, models in sizes.items() if (line := differing_sizes(models)))
    for language, line in lines:
        print(f"{language}: {line}", flush=True)
        break


def print_failure(run: Path, reason: str, file: str | None) -> None:
    """Print that a run has failed, which does not stop the others, and which of its files says more, if any does."""
    print(f"error: {run}: {reason}{f'; see {file} there' if file else ''}", file=sys.stderr, flush=True)


def print_set_aside(run: Path, reason: str, aside: Path) -> None:
    """Print that a run is made anew, and where its old files are."""
    print(f"Made anew, since its {reason}: {run}; its files are now in {aside}", flush=True)


def print_in_use(run: Path) -> None:
    """Print that a run is left to the process that runs it."""
    print(f"Another process is running it: {run}", flush=True)


def print_counts(
    name: str, folder: str, outcomes: Mapping[Path, tuple[str, str | None]], skipped: Collection[Path]
) -> None:
    """Print how many runs ended how.

    Args:
        outcomes: by run folder, the status and the reason if it failed.
        skipped: the runs that had finished before.
    """
    new = Counter(state for run, (state, _) in outcomes.items() if run not in skipped)
    counts = {"finished": new["finished"], "skipped": len(skipped), "failed": new["failed"]} | new
    counted = ", ".join(f"{number} {state}" for state, number in counts.items())
    print(f"Sweep {name}: {counted}. Run folders: {folder}", flush=True)


def print_best(trials: int, objective: float, run: Path, overrides: list[str]) -> None:
    """Print the best trial of a search, and the command that runs it alone."""
    print(f"Best of {trials} trials, Val/objective {objective:.4f} ({run.name}):")
    print(f"    rule-extrapolation train {shlex.join(overrides)}", flush=True)


def print_problems(outcomes: Mapping[Path, tuple[str, str | None]], skipped: Collection[Path], missing: int) -> None:
    """Print a line for each new run that diverged or failed, and how to continue if any is missing."""
    for run, (state, reason) in outcomes.items():
        if state == "diverged" and run not in skipped:
            print(f"diverged, its loss is not finite: {run}", flush=True)
        elif reason:
            print(f"error: {run}: {reason}", file=sys.stderr)
    if missing:
        print("Run the same command again to continue these.", file=sys.stderr, flush=True)
