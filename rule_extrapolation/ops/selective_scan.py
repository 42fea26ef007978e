"""The selective scan of Mamba (Gu & Dao 2023, arXiv 2312.00752, section 3, algorithm 2).

Each of D channels has a state of N numbers, which decays and takes input in at a pace dt that the input itself sets:

    h_t = exp(dt_t A) * h_{t-1} + dt_t x_t B_t        y_t = sum over N of C_t * h_t
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scan T steps, in float32 at least. Differentiable once, in all six.

    Args:
        x: (batch, T, D) inputs, T from 1.
        dt: (batch, T, D) positive step sizes.
        A: (D, N) negative rates.
        B: (batch, T, N) how the input enters the state.
        C: (batch, T, N) how the state is read.
        h0: (batch, D, N) the state before the first step; None is zero.

    Returns:
        (batch, T, D) outputs y, of the dtype of x, and the (batch, D, N) state behind the last step.
    """
    if h0 is None:
        h0 = A.new_zeros(len(x), *A.shape)
    dtype = torch.promote_types(A.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        y, h = SelectiveScan.apply(*(tensor.to(dtype) for tensor in (x, dt, A, B, C, h0)))
    return y.to(x.dtype), h


class SelectiveScan(torch.autograd.Function):
    """Both passes hold a few (batch, D, N) tensors at a time. All T states at once would be the larger part of what a
    training step needs, so that only every sqrt(T)-th is kept, and the backward pass computes a stretch of them anew.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        time = x.shape[1]
        ctx.stretch = math.isqrt(time)
        u, y, h = dt * x, torch.empty_like(x), h0.clone()
        buffer = torch.empty_like(h)
        kept = []
        for t in range(time):
            if t % ctx.stretch == 0:
                kept.append(h.clone())
            h.mul_(decay(dt, A, t, out=buffer)).addcmul_(over_states(u, t), over_channels(B, t))
            y[:, t] = torch.mul(h, over_channels(C, t), out=buffer).sum(2)
        ctx.save_for_backward(x, dt, A, B, C, *kept)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor, ...]:
        x, dt, A, B, C, *kept = ctx.saved_tensors
        u = dt * x
        d_u, d_dt, d_B, d_C = (torch.empty_like(tensor) for tensor in (u, dt, B, C))
        d_A = torch.zeros_like(dh)
        dh = dh.clone()
        decays = dh.new_empty(ctx.stretch, *dh.shape)
        states = dh.new_empty(ctx.stretch + 1, *dh.shape)
        for start in reversed(range(0, x.shape[1], ctx.stretch)):
            steps = range(start, min(start + ctx.stretch, x.shape[1]))
            states[0] = kept.pop()
            for a, h, h_next, t in zip(decays, states, states[1:], steps):
                torch.mul(decay(dt, A, t, out=a), h, out=h_next).addcmul_(over_states(u, t), over_channels(B, t))
            for t in reversed(steps):
                a, h, h_next = decays[t - start], states[t - start], states[t - start + 1]
                dh.addcmul_(over_states(dy, t), over_channels(C, t))
                d_C[:, t] = (dy[:, t, None] @ h_next).squeeze(1)
                d_B[:, t] = (u[:, t, None] @ dh).squeeze(1)
                buffer = h_next  # no longer needed
                d_u[:, t] = torch.mul(dh, over_channels(B, t), out=buffer).sum(2)
                dh.mul_(a)
                d_exponent = torch.mul(dh, h, out=a)
                d_A.addcmul_(d_exponent, over_states(dt, t))
                d_dt[:, t] = torch.mul(d_exponent, A, out=buffer).sum(2)
        return d_u * dt, d_dt + d_u * x, d_A.sum(0), d_B, d_C, dh


def decay(dt: Tensor, A: Tensor, t: int, out: Tensor) -> Tensor:
    return torch.mul(over_states(dt, t), A, out=out).exp_()


def over_states(values: Tensor, t: int) -> Tensor:
    """(batch, T, D) -> (batch, D, 1)"""
    return values[:, t, :, None]


def over_channels(values: Tensor, t: int) -> Tensor:
    """(batch, T, N) -> (batch, 1, N)"""
    return values[:, t, None]
