"""The selective scan in plain torch, for any device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, signed: bool = False
) -> tuple[Tensor, Tensor]:
    """Arguments and results as in ``selective_scan.selective_scan``, but all arguments have one dtype."""
    return SelectiveScan.apply(x, dt, A, B, C, h0, signed)


class SelectiveScan(torch.autograd.Function):
    """The scan step by step, with the backward pass written by hand.

    All T states would take most of the memory of a training step. So the forward pass saves only every sqrt(T)-th of
    them, and the backward pass computes the states between two saved ones, a *stretch*, again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, signed: bool
    ) -> tuple[Tensor, Tensor]:
        time = x.shape[1]
        ctx.stretch, ctx.signed = math.isqrt(time), signed
        u, y, h = dt * x, torch.empty_like(x), h0.clone()
        buffer = torch.empty_like(h)
        saved = []
        for t in range(time):
            if t % ctx.stretch == 0:
                saved.append(h.clone())
            h.mul_(decay(dt, A, t, signed, out=buffer)).addcmul_(over_states(u, t), over_channels(B, t))
            y[:, t] = torch.mul(h, over_channels(C, t), out=buffer).sum(2)
        ctx.save_for_backward(x, dt, A, B, C, *saved)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor, ...]:
        x, dt, A, B, C, *saved = ctx.saved_tensors
        u = dt * x
        d_u, d_dt, d_B, d_C = (torch.empty_like(tensor) for tensor in (u, dt, B, C))
        d_A = torch.zeros_like(dh)
        dh = dh.clone()
        decays = dh.new_empty(ctx.stretch, *dh.shape)
        states = dh.new_empty(ctx.stretch + 1, *dh.shape)
        for start in reversed(range(0, x.shape[1], ctx.stretch)):
            steps = range(start, min(start + ctx.stretch, x.shape[1]))
            states[0] = saved.pop()
            for a, h, h_next, t in zip(decays, states, states[1:], steps):
                torch.mul(decay(dt, A, t, ctx.signed, out=a), h, out=h_next).addcmul_(
                    over_states(u, t), over_channels(B, t)
                )
            for t in reversed(steps):
                a, h, h_next = decays[t - start], states[t - start], states[t - start + 1]
                dh.addcmul_(over_states(dy, t), over_channels(C, t))
                d_C[:, t] = (dy[:, t, None] @ h_next).squeeze(1)
                d_B[:, t] = (u[:, t, None] @ dh).squeeze(1)
                buffer = h_next  # no longer needed
                d_u[:, t] = torch.mul(dh, over_channels(B, t), out=buffer).sum(2)
                # The derivative of a = e is e itself; that of a = 2 e - 1 is 2 e = a + 1.
                slope = a + 1 if ctx.signed else a
                d_exponent = dh * slope * h
                dh.mul_(a)
                d_A.addcmul_(d_exponent, over_states(dt, t))
                d_dt[:, t] = torch.mul(d_exponent, A, out=buffer).sum(2)
        return d_u * dt, d_dt + d_u * x, d_A.sum(0), d_B, d_C, dh, None


def decay(dt: Tensor, A: Tensor, t: int, signed: bool, out: Tensor) -> Tensor:
    """exp(dt_t A) or, with ``signed``, 2 exp(dt_t A) - 1."""
    torch.mul(over_states(dt, t), A, out=out).exp_()
    return out.mul_(2).sub_(1) if signed else out


def over_states(values: Tensor, t: int) -> Tensor:
    """(batch, T, D) -> (batch, D, 1)"""
    return values[:, t, :, None]


def over_channels(values: Tensor, t: int) -> Tensor:
    """(batch, T, N) -> (batch, 1, N)"""
    return values[:, t, None]
