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

from rule_extrapolation.ops import compiled

STRETCH = 16
"""Steps between the states that the compiled kernel keeps, at least: so many fit into the second-level cache."""


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scan T steps, in float32 at least. Differentiable once, in all six. On a CPU compiled, where numba is there.

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
        tensors = [tensor.to(dtype) for tensor in (x, dt, A, B, C, h0)]
        if compiled.handles(*tensors):
            y, h, _ = forward(*tensors, torch.is_grad_enabled())
        else:
            y, h = SelectiveScan.apply(*tensors)
    return y.to(x.dtype), h


@torch.library.custom_op("rule_extrapolation::selective_scan", mutates_args=(), device_types="cpu")
def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the state behind the last step, and the states before each stretch, which the backward pass starts from: only
    with ``keep``."""
    check_shapes(x, dt, A, B, C, h0)
    y, h, kept = forward_fake(x, dt, A, B, C, h0, keep)
    launch(0, (x, dt, A.mT, B, C, h0.mT), (h.mT, kept, y))
    return y, h, kept


@torch.library.custom_op("rule_extrapolation::selective_scan_backward", mutates_args=(), device_types="cpu")
def backward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, kept: Tensor, dy: Tensor, dh: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, dt, A, B, C and h0."""
    from rule_extrapolation.ops.selective_scan_numba import WIDTH

    (batch, _, channels), states = x.shape, A.shape[1]
    d_x, d_dt, d_h = x.new_empty(x.shape), x.new_empty(x.shape), dh.mT.clone(memory_format=torch.contiguous_format)
    d_A = x.new_empty(batch, states, channels)
    d_B, d_C = x.new_empty(2, batch, -(-channels // WIDTH), *B.shape[1:])
    launch(1, (x, dt, A.mT, B, C, kept, dy), (d_x, d_dt, d_A, d_B, d_C, d_h))
    return d_x, d_dt, d_A.sum(0).mT.contiguous(), d_B.sum(1), d_C.sum(1), d_h.mT


def launch(which: int, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """Run the forward (0) or the backward kernel (1)."""
    from rule_extrapolation.ops.selective_scan_numba import WIDTH, kernels

    x, _, A, *_ = inputs
    (batch, time, channels), states = x.shape, A.shape[0]
    kernel = kernels(compiled.NUMPY_TYPES[x.dtype])[which]
    tasks = batch * -(-channels // WIDTH)
    inputs = tuple(tensor.contiguous() for tensor in inputs)
    sizes = (time, channels, states, stretch_of(time))
    compiled.launch(kernel, tasks, sizes, inputs + outputs, states * x.numel())


def stretch_of(time: int) -> int:
    return max(STRETCH, math.isqrt(time))


@forward.register_fake
def forward_fake(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, time, channels), states = x.shape, A.shape[1]
    kept = x.new_empty(batch, -(-time // stretch_of(time)) if keep else 0, states, channels)
    return x.new_empty(x.shape), x.new_empty(batch, states, channels).mT, kept


@backward.register_fake
def backward_fake(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, kept: Tensor, dy: Tensor, dh: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dense = (tensor.new_empty(tensor.shape) for tensor in (x, dt, A, B, C))
    return *dense, dh.new_empty(dh.mT.shape).mT


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[2])


def differentiate(ctx: Any, dy: Tensor, dh: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *backward(*ctx.saved_tensors, dy, dh), None


forward.register_autograd(differentiate, setup_context=save)


def check_shapes(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor) -> None:
    (batch, time, channels), states = x.shape, A.shape[1]
    expected = 2 * [(batch, time, channels)] + [(channels, states)] + 2 * [(batch, time, states)]
    expected += [(batch, channels, states)]
    tensors = (x, dt, A, B, C, h0)
    if [tuple(tensor.shape) for tensor in tensors] != expected or len({tensor.dtype for tensor in tensors}) > 1:
        shapes = [(*tensor.shape, tensor.dtype) for tensor in tensors]
        raise ValueError(f"x, dt, A, B, C and h0 must be {expected}, of one dtype, not {shapes}")


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
