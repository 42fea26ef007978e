"""Run all benchmarks or some of them and print a table: python -m benchmarks [--markdown FILE] [decoding steps ...]"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.comparison import Comparison
from benchmarks.table import Table
from rule_extrapolation.ops.allocator import keep_freed_memory

SCRIPTS = (
    "recurrence",
    "steps",
    "decoding",
    "sampling",
    "rules",
    "trainer",
    "seeds",
    "startup",
)
"""Modules of this package, each with a function comparisons()."""


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    threads = f"{torch.get_num_threads()} threads"
    return f"{cpu}, {os.cpu_count()} cores, torch {torch.__version__} with {threads}, {datetime.date.today()}"


def comparisons(script: str) -> Iterator[Comparison]:
    return import_module(f"benchmarks.{script}").comparisons()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scripts", nargs="*", choices=[*SCRIPTS, "memory", []], help="run only these")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to this file too")
    chosen = parser.parse_args(arguments)
    keep_freed_memory()  # as in a run, and for the peers as well
    with chosen.markdown.open("w") if chosen.markdown else nullcontext() as file:
        table = Table(file, above=machine())
        scripts = [script for script in SCRIPTS if script in (chosen.scripts or SCRIPTS)]
        if scripts:
            table.begin()
        for script in scripts:
            table.add(script, lambda script=script: comparisons(script))
        if "memory" in (chosen.scripts or ["memory"]):
            from benchmarks import memory

            memory.add_to(table)
    return 1 if table.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
