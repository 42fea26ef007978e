"""The time of commands that train nothing, compared with importing Hydra."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.comparison import Comparison
from benchmarks.table import run

COMMANDS = ("--help", "--cfg job", "model=transformer model.num_heads=3", "optimizer.lr=-1")


def comparisons() -> Iterator[Comparison]:
    for arguments in COMMANDS:
        command = [sys.executable, "-m", "rule_extrapolation.runner", *arguments.split()]
        yield Comparison(
            name=f"runner {arguments}",
            ours=lambda command=command: subprocess.run(command, capture_output=True),
            peer=lambda: subprocess.run([sys.executable, "-c", "import hydra"], check=True),
            peer_name='python -c "import hydra"',
            at_least=1 / 3,
        )


if __name__ == "__main__":
    run(comparisons())
