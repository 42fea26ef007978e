"""How many threads torch should use for a computation.

Threads wait for each other at the end of every operation. For small matrix products the waiting takes longer than the
computation, and many times longer when another process occupies one of the cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

WORTH_A_THREAD = 2e6
"""Multiply-adds of a product that justify one thread: 40 µs at 100 GFLOP/s. For smaller products, a second thread makes
decoding up to a third faster on an idle machine but up to six times slower on a busy one."""


def threads_for(multiply_adds: float) -> int:
    """Threads for products of this many multiply-adds each: at least 1, and at most torch's current number."""
    return max(1, min(torch.get_num_threads(), int(multiply_adds / WORTH_A_THREAD)))


def multiply_adds(model: nn.Module, tokens: float) -> float:
    """Multiply-adds of a product with one of the model's matrices, on average, for a batch of this many tokens."""
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.ndim > 1]
    return tokens * sum(sizes) / max(len(sizes), 1)


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """A context manager or decorator within which torch and the compiled kernels use at most this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
