"""How many of torch's threads a computation is worth.

Threads wait for each other at the end of every operation. Where products are small that takes longer than they do, and
as soon as another process has one of the cores, many times longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

WORTH_A_THREAD = 2e6
"""Multiply-adds of one product: 40 µs at 100 GFLOP/s. Where products are smaller, a second thread takes up to a third
off the time of a decoded token on a quiet machine, and multiplies it by up to six on a busy one."""


def threads_for(multiply_adds: float) -> int:
    """Threads that products of that many multiply-adds each are worth: from 1 to as many as torch has been given."""
    return max(1, min(torch.get_num_threads(), int(multiply_adds / WORTH_A_THREAD)))


def multiply_adds(model: nn.Module, tokens: float) -> float:
    """Of a product with one of the model's matrices, on average, where so many tokens are multiplied at once."""
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.ndim > 1]
    return tokens * sum(sizes) / max(len(sizes), 1)


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Let torch, and kernels that go by its number, use at most so many threads inside. Also a decorator."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
