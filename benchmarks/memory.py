"""Peak memory of a training step at the L5 defaults, each in a process of its own: python -m benchmarks.memory"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import torch
from torch import nn

from benchmarks.sizes import MODELS, NUM_TOKENS, make
from benchmarks.steps import training_step, words
from benchmarks.table import Table, first_line


class MambapyPeer(nn.Module):
    """mambapy's stack at the sizes of ours, between an embedding and a linear layer."""

    def __init__(self):
        from mambapy.mamba import Mamba, MambaConfig

        super().__init__()
        self.embedding = nn.Embedding(NUM_TOKENS, 64)
        self.mamba = Mamba(MambaConfig(d_model=64, n_layers=8, d_state=32, d_conv=8, expand_factor=2))
        self.head = nn.Linear(64, NUM_TOKENS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.mamba(self.embedding(tokens))).transpose(1, 2)


class XLSTMPeer(nn.Module):
    """The package xlstm's own stack, which reads the sequence at once."""

    def __init__(self):
        super().__init__()
        self.lm = make("xlstm").model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm(tokens).transpose(1, 2)


PEERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mamba": (MambapyPeer, "mambapy"),
    "xlstm": (XLSTMPeer, "xlstm"),
}


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, ours: bool, batch_size: int = 128) -> None:
    """Print the peak before the first step and behind the third."""
    step = training_step(make(name) if ours else PEERS[name][0](), words(batch_size))
    before = peak()
    for _ in range(3):
        step()
    print(before, peak())


def in_process(name: str, ours: bool) -> str:
    code = f"from benchmarks.memory import measure; measure({name!r}, {ours})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    before, after = map(float, done.stdout.split()[-2:])
    return f"{after:.0f} MiB ({before:.0f} before the first step)"


def add_to(table: Table) -> None:
    table.begin(("peak memory of a training step", "ours", "peer", "peer's"))
    for name in MODELS:
        package = PEERS[name][1] if name in PEERS else ""
        try:
            peer = (f"{package} {version(package)}", in_process(name, ours=False)) if package else ("", "")
        except Exception as error:
            peer = (package, first_line(error))
        table.print(f"| {name} | {in_process(name, ours=True)} | {peer[0]} | {peer[1]} |")


if __name__ == "__main__":
    add_to(Table())
