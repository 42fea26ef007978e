"""Dropout that is fast on a CPU as well.

On a CPU, torch draws a float64 for each element in a single thread and then multiplies by a mask, which takes half of a
transformer's training step. The compiled kernel reads and writes memory once: it drops an element according to a hash
of the element's index and of a seed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rule_extrapolation.ops._kernels.launcher import NUMPY_TYPES, handles
from rule_extrapolation.ops.dropout import reference

__all__ = ["dropout", "relu_dropout"]


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Like F.dropout: set elements to 0 with probability p and scale the others by 1 / (1 - p).

    The compiled kernel is used for float32 and float64 on a CPU. It draws a seed from torch's global generator, and so
    drops other elements than F.dropout would. Its p is rounded to the nearest multiple of 2^-32 other than 0 and 1, and
    the scale fits the rounded p, so that the expectation is exactly x.

    Args:
        x: any shape.
        p: the probability of dropping an element.
        training: if false, nothing is dropped.

    Raises:
        ValueError: p is not between 0 and 1.
    """
    if not training or p == 0 or not has_kernel(x):
        return reference.dropout(x, p, training)
    return Dropout.apply(x, *draw_seed(), drop_threshold(p))


def relu_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``dropout(x.relu(), p, training)`` in one pass. Differentiable once."""
    if not training or p == 0 or not has_kernel(x):
        return reference.relu_dropout(x, p, training)
    return ReluDropout.apply(x, *draw_seed(), drop_threshold(p))


def has_kernel(x: Tensor) -> bool:
    return x.dtype in NUMPY_TYPES and handles(x)


def draw_seed() -> list[int]:
    """Two 32-bit words."""
    return torch.randint(2**32, (2,)).tolist()


def drop_threshold(p: float) -> int:
    """How many of the 2^32 possible hashes drop their element."""
    if not 0 <= p <= 1:
        raise ValueError(f"the dropout probability must be between 0 and 1, not {p}")
    return min(max(round(p * 2**32), 1), 2**32 - 1)


class Dropout(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, low: int, high: int, drop_threshold: int) -> Tensor:
        from rule_extrapolation.ops.dropout import cpu_numba

        return cpu_numba.forward(x, low, high, drop_threshold, relu=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int, int], output: Tensor) -> None:
        _, *ctx.draws = inputs

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        return Dropout.apply(dy, *ctx.draws), None, None, None


class ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, low: int, high: int, drop_threshold: int) -> Tensor:
        from rule_extrapolation.ops.dropout import cpu_numba

        return cpu_numba.forward(x, low, high, drop_threshold, relu=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int, int], output: Tensor) -> None:
        *_, ctx.drop_threshold = inputs
        ctx.save_for_backward(output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        from rule_extrapolation.ops.dropout import cpu_numba

        [y] = ctx.saved_tensors
        return cpu_numba.backward_of_relu(y, dy, ctx.drop_threshold), None, None, None
