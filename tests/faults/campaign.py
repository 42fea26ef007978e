"""Try what can go wrong around a run, and write the table of docs/faults.md: make faults

Sweeps are killed at random moments here. Everything else is what tests try; this runs them and counts. It takes about
half an hour on two cores.

    make faults                     all of it
    make faults ARGS="--only kill"  rows whose description contains a word, which are printed but not written
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

SWEEP = [
    "-m", "model=mingru,lstm", "grammar=L1", "sweep=x", "logger=csv", "model.hidden_dim=8",
    "data.max_length=12", "data.num_train=64", "data.num_val=64", "data.num_test=64", "data.batch_size=16",
    "decoding.max_new_tokens=8", "trainer.max_steps=150", "trainer.val_check_interval=25",
    "trainer.log_every_n_steps=5", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
]  # fmt: skip
KILLS = 20
AT_ONCE = 3
"""Rows that are computed at the same time."""
LAUNCHERS = {"basic": [], "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]}
FIGURES = ("status", "tested", "test", "at_best_validation", "over_training", "optimal_loss")
FILES = ("metrics.csv", "completions.csv")


@dataclass
class Outcome:
    """What one row of the table says."""

    tried: str
    held: int
    of: int
    note: str = ""


def sweep(folder: Path, launcher: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "rule_extrapolation.runner", *SWEEP, *LAUNCHERS[launcher]]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(folder: Path, launcher: str) -> float:
    """Run the sweep to its end; returns the seconds it took."""
    beginning = time.monotonic()
    process = sweep(folder, launcher)
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the sweep ended with exit status {process.returncode}:\n{out}")
    return time.monotonic() - beginning


def content(folder: Path) -> dict[str, object]:
    """What the runs of a sweep have computed, by the names of their folders."""
    found: dict[str, object] = {}
    for run in sorted(folder.glob("runs/sweeps/x/*/")):
        results = json.loads((run / "results.json").read_text())
        found[run.name] = {key: results.get(key) for key in FIGURES}
        for file in FILES:
            with open(run / file, newline="") as rows:
                found[f"{run.name}/{file}"] = [*csv.reader(rows)]
    return found


def kills(launcher: str) -> Outcome:
    """Kill the command of a sweep at random moments, and give it again each time.

    It continues until the sweep is complete, which is compared with one that was not disturbed; then another one
    begins. The moments are evenly distributed over the time that the undisturbed sweep takes.
    """
    draw = random.Random(launcher)
    folder = Path(tempfile.mkdtemp())
    seconds = finish(folder, launcher)
    expected = content(folder)
    held = killed = sweeps = since = 0
    while killed < KILLS or since:
        if not since:
            shutil.rmtree(folder / "runs")
        process = sweep(folder, launcher)
        try:
            process.communicate(timeout=draw.uniform(0, seconds) if killed < KILLS else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed, since = killed + 1, since + 1
            continue
        sweeps += 1
        if process.returncode == 0 and content(folder) == expected:
            held += since
        since = 0
    shutil.rmtree(folder)
    note = f"{sweeps} sweeps of 2 runs to their end, each as an undisturbed one of {seconds:.0f} s"
    tried = f"`kill -9` at {KILLS} random moments of a sweep, {launcher} launcher, the same command again each time"
    return Outcome(tried, held, KILLS, note)


def tests(tried: str, *arguments: str) -> Outcome:
    """Run tests, the slow ones too. A test may note a measurement with record_property("note", ...)."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow"]
        done = subprocess.run([*command, f"--junitxml={report}", *arguments], cwd=ROOT, env=ENVIRONMENT, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        if not report.is_file():
            raise RuntimeError(done.stdout)
        cases = [*ElementTree.parse(report).iter("testcase")]
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    skipped = [case for case in cases if case.find("skipped") is not None]
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    notes = [item.get("value") for case in cases for item in case.iter("property") if item.get("name") == "note"]
    notes += [f"{len(skipped)} could not be tried on this machine"] if skipped else []
    tried_cases = len(cases) - len(skipped)
    return Outcome(tried, tried_cases - len(failed), tried_cases, "; ".join(notes))


def rows() -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """The description of each row, and what computes it."""
    for launcher in LAUNCHERS:
        yield f"kill -9, {launcher}", lambda launcher=launcher: kills(launcher)
    described = {
        "Ctrl-C and SIGTERM in the last batch, validation or test; damaged files of a run": (
            "tests/test_faults.py", "-k", "not disk"),
        "A full disk (tmpfs) at each file that a run writes, then the same command with space": (
            "tests/test_faults.py", "-k", "disk"),
        "Malformed command lines: one line with field, value and fix, and no folder": (
            "tests/test_malformed_inputs.py",),
        "Run folders with planted code, pickles, interpolations, links and names": (
            "tests/test_run_folder_is_data.py",),
        "Two processes in one run folder": ("tests/test_one_folder.py",),
        "Memory and open files of 200 runs in one process": ("tests/test_memory.py",),
        "W&B: its process killed, its server gone or hanging": (
            "tests/test_wandb.py", "-k", "process or hangs or gone or offline_with"),
    }  # fmt: skip
    for tried, arguments in described.items():
        if (ROOT / arguments[0]).is_file():
            yield tried, lambda tried=tried, arguments=arguments: tests(tried, *arguments)


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{system}, {os.cpu_count()} cores, {memory:.0f} GiB"


def page(outcomes: list[Outcome], minutes: float) -> str:
    table = [f"| {row.tried} | {row.held} of {row.of} | {row.note} |" for row in outcomes]
    return f"""# Faults

What was tried to break a run or to lose its results, and what held. `make faults` repeats all of it and writes this
page.

| what was tried | held | |
| --- | --- | --- |
{chr(10).join(table)}

Tried on {date.today()} in {minutes:.0f} minutes ({machine()}).

After a kill, *held* means that the figures in `results.json`, `metrics.csv` and `completions.csv` are those of the
undisturbed sweep. The other rows count the cases of the tests that try them, in `tests/`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only rows whose description contains this")
    only = parser.parse_args().only.lower()
    beginning = time.monotonic()

    def row(compute: Callable[[], Outcome]) -> Outcome:
        outcome = compute()
        print(f"{outcome.held} of {outcome.of}: {outcome.tried}  {outcome.note}", flush=True)
        return outcome

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = [*pool.map(row, [compute for tried, compute in rows() if only in tried.lower()])]
    if not only:
        PAGE.write_text(page(outcomes, (time.monotonic() - beginning) / 60))
    sys.exit(any(row.held < row.of for row in outcomes))


if __name__ == "__main__":
    main()
