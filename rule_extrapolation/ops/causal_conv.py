"""A causal convolution of each channel by itself, without moving time to the last dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y_t = bias + sum over k of weight_k x_(t - K + 1 + k), with zeros before the first step. Differentiable once.

    Args:
        x: (B, T, C)
        weight: (C, K)
        bias: (C,)

    Returns:
        (B, T, C)
    """
    return CausalConv.apply(x, weight.T.contiguous(), bias)


class CausalConv(torch.autograd.Function):
    """From (B, T, C), (K, C) and (C,) to (B, T, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = torch.addcmul(bias, x, weight[-1])
        for lag in lags(x, weight):
            y[:, lag:].addcmul_(x[:, :-lag], weight[-1 - lag])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        d_weight = torch.zeros_like(weight)
        buffer = dy * x
        d_weight[-1] = buffer.sum((0, 1))
        for lag in lags(x, weight):
            buffer[:, lag - 1] = 0
            torch.mul(dy[:, lag:], x[:, :-lag], out=buffer[:, lag:])
            d_weight[-1 - lag] = buffer.sum((0, 1))
        dx = torch.mul(dy, weight[-1], out=buffer)
        for lag in lags(x, weight):
            dx[:, :-lag].addcmul_(dy[:, lag:], weight[-1 - lag])
        return dx, d_weight, dy.sum((0, 1))


def lags(x: Tensor, weight: Tensor) -> range:
    """How far taps reach back, of those that do, and not to before the first step."""
    return range(1, min(len(weight), x.shape[1]))
