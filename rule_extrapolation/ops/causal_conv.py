"""Causal depthwise convolutions that keep time in the second dimension, unlike nn.Conv1d."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y_t = bias + sum over k = 0, ..., K - 1 of weight_k x_{t - K + 1 + k} for each channel, where x_t = 0 for t < 0.

    Differentiable once.

    Args:
        x: (B, T, C)
        weight: (C, K); weight[:, K - 1] multiplies the current step.
        bias: (C,)

    Returns:
        (B, T, C)
    """
    return CausalConv.apply(x, weight.T.contiguous(), bias)


def convolve_window(window: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same convolution of T steps that follow K - 1 others, as when a sequence is continued.

    Args:
        window: (B, K - 1 + T, C)
        weight: (C, 1, K), as in nn.Conv1d.
        bias: (C,), or None.

    Returns:
        (B, T, C)
    """
    if window.shape[1] == weight.shape[2]:  # one step: F.conv1d takes three times as long
        y = (window * weight.squeeze(1).mT).sum(1, keepdim=True)
        return y if bias is None else y + bias
    return F.conv1d(window.mT, weight, bias, groups=window.shape[2]).mT


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
    """The lags of the taps before the current step, as far as they reach a step of the sequence."""
    return range(1, min(len(weight), x.shape[1]))
