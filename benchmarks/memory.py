"""Peak memory of a training step at the L5 defaults, each model in a new process: python -m benchmarks.memory"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.sizes import MODELS, make
from benchmarks.steps import PEERS, training_step, words
from benchmarks.table import Table
from rule_extrapolation.ops.allocator import keep_freed_memory

AT_MOST = {"mamba": 0.25}
"""The goal: a share of the peer's peak memory."""


def peak() -> float:
    """The peak memory of this process in MiB. That of getrusage would include the process that started this one."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def measure(name: str, ours: bool, batch_size: int = 128) -> None:
    """Print the peak memory before the first step and after the third."""
    keep_freed_memory()
    model = make(name) if ours else PEERS[name][0](make(name))
    step = training_step(model, words(batch_size))
    before = peak()
    for _ in range(3):
        step()
    print(before, peak())


def in_process(name: str, ours: bool) -> tuple[float, float]:
    """The peak memory of a new process after its steps and before the first one, in MiB.

    Raises:
        RuntimeError: the process failed. The message is the last line of its stderr.
    """
    code = f"from benchmarks.memory import measure; measure({name!r}, {ours})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    before, after = map(float, done.stdout.split()[-2:])
    return after, before


def add_to(table: Table) -> None:
    table.begin(
        ("peak memory of a training step", "ours", "ours before the first step", "peer", "peer's", "ratio", "goal")
    )
    for name in MODELS:
        try:
            ours, before = in_process(name, ours=True)
            cells = [name, f"{ours:.0f} MiB", f"{before:.0f} MiB", "", "", "", ""]
            if name in PEERS:
                theirs, _ = in_process(name, ours=False)
                share, most = ours / theirs, AT_MOST.get(name)
                verdict = "" if most is None else f"{'met' if share <= most else 'not met'}: at most {most}"
                cells[3:] = [PEERS[name][1], f"{theirs:.0f} MiB", f"{share:.2f}", verdict]
            table.print("| " + " | ".join(cells) + " |")
        except Exception as error:
            table.fail(name, error)


if __name__ == "__main__":
    add_to(Table())
