"""Dropout that is quick on a CPU too.

There, torch draws a float64 for each element in one thread, and multiplies by a mask: half of a transformer's training
step. The compiled kernel goes through memory once, and hashes an element's place to decide on it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.ops import compiled


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """F.dropout; on a CPU with other draws, seeded by torch's global generator.

    There the probability is the multiple of 2^-32 next to p (neither 0 nor 1), and the scale belongs to that one, so
    that the expectation is exactly x.
    """
    if not training or p == 0 or not has_kernel(x):
        return F.dropout(x, p, training)
    return Dropout.apply(x, *draw_seed(), drop_threshold(p))


def relu_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``dropout`` of max(x, 0), at once."""
    if not training or p == 0 or not has_kernel(x):
        return F.dropout(x.relu(), p, training)
    return ReluDropout.apply(x, *draw_seed(), drop_threshold(p))


def has_kernel(x: Tensor) -> bool:
    return x.dtype in compiled.NUMPY_TYPES and compiled.handles(x)


def draw_seed() -> list[int]:
    return torch.randint(2**32, (2,)).tolist()


def drop_threshold(p: float) -> int:
    """How many of 2^32 hashes drop their element."""
    if not 0 <= p <= 1:
        raise ValueError(f"the probability of dropping must be from 0 to 1, not {p}")
    return min(max(round(p * 2**32), 1), 2**32 - 1)


class Dropout(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, low: int, high: int, drop_threshold: int) -> Tensor:
        return launch_forward(x, low, high, drop_threshold, relu=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int, int], output: Tensor) -> None:
        _, *ctx.draws = inputs

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        return Dropout.apply(dy, *ctx.draws), None, None, None


class ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, low: int, high: int, drop_threshold: int) -> Tensor:
        return launch_forward(x, low, high, drop_threshold, relu=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int, int], output: Tensor) -> None:
        *_, ctx.drop_threshold = inputs
        ctx.save_for_backward(output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        [y] = ctx.saved_tensors
        dx = torch.empty_like(y)
        launch(1, y, (ctx.drop_threshold,), (y, dy.contiguous(), dx))
        return dx, None, None, None


def launch_forward(x: Tensor, low: int, high: int, drop_threshold: int, relu: bool) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    launch(0, x, (drop_threshold, low, high, relu), (x, y))
    return y


def launch(which: int, x: Tensor, numbers: tuple[int, ...], tensors: tuple[Tensor, ...]) -> None:
    """Run the forward (0) or the backward kernel (1)."""
    from rule_extrapolation.ops.dropout_numba import BLOCK, kernels

    kernel = kernels(compiled.NUMPY_TYPES[x.dtype])[which]
    compiled.launch(kernel, -(-x.numel() // BLOCK), (x.numel(), *numbers), tensors, x.numel())
