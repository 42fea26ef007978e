"""How many CPU threads a run may use, and how many a computation should use.

Runs that train in parallel share the cores.

Threads wait for each other at the end of every operation. For small matrix products the waiting takes longer than the
computation, and many times longer when another process occupies one of the cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:  # a command sets its threads before torch is imported
    from torch import nn

WORTH_A_THREAD = 2e6
"""Multiply-adds of a product that justify one thread: 40 µs at 100 GFLOP/s. For smaller products, a second thread makes
decoding up to a third faster on an idle machine but up to six times slower on a busy one."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_per_job(launcher: DictConfig) -> int | None:
    """Threads for each of the runs that a Hydra launcher starts in parallel, or None if its settings do not say."""
    if jobs := launcher.get("n_jobs"):  # of joblib: -1 is one job per core, -2 one job fewer
        return max(1, cores() // (jobs if jobs > 0 else max(1, cores() + 1 + jobs)))
    return launcher.get("cpus_per_task") or OmegaConf.select(launcher, "ray.remote.num_cpus")


def limit_threads(threads: int | None) -> None:
    """Let torch use at most this many threads, also in child processes. None leaves it as it is."""
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it on import, also in child processes
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def useful_threads(multiply_adds: float) -> int:
    """Threads for products of this many multiply-adds each: at least 1, and at most torch's current number."""
    import torch

    return max(1, min(torch.get_num_threads(), int(multiply_adds / WORTH_A_THREAD)))


def multiply_adds(model: nn.Module, tokens: float) -> float:
    """Multiply-adds of a product with one of the model's matrices, on average, for a batch of this many tokens."""
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.ndim > 1]
    return tokens * sum(sizes) / max(len(sizes), 1)


@contextmanager
def threads_limited(threads: int) -> Iterator[None]:
    """A context manager or decorator within which torch and the compiled kernels use at most this many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
