"""The selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752, section 3, algorithm 2).

Each of D channels has a state h of N numbers. The step size dt, which depends on the input, sets how fast the state
decays and how much input it takes:

    h_t = exp(dt_t A) * h_{t-1} + dt_t x_t B_t
    y_t = sum over the N numbers of C_t * h_t

With ``signed``, 2 exp(dt_t A) - 1 in [-1, 1] takes the place of exp(dt_t A) (Grazzi et al. 2024, arXiv 2411.12537).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rule_extrapolation.ops._kernels.launcher import handles
from rule_extrapolation.ops.selective_scan import reference

__all__ = ["selective_scan"]


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None = None, signed: bool = False
) -> tuple[Tensor, Tensor]:
    """Scan T steps. The result can be differentiated once, with respect to all six arguments.

    The scan is computed in float32 or float64, also under autocast: by a compiled kernel on a CPU if numba is
    installed, else in plain torch.

    Args:
        x: (batch, T, D) inputs, T at least 1.
        dt: (batch, T, D) positive step sizes.
        A: (D, N) negative decay rates.
        B: (batch, T, N) weights of the input in the state.
        C: (batch, T, N) weights of the state in the output.
        h0: (batch, D, N) state before the first step; None is zero.
        signed: whether 2 exp(dt_t A) - 1 takes the place of exp(dt_t A).

    Returns:
        The (batch, T, D) outputs y, of the dtype of x, and the (batch, D, N) state after the last step.
    """
    if h0 is None:
        h0 = A.new_zeros(len(x), *A.shape)
    dtype = torch.promote_types(A.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        tensors = [tensor.to(dtype) for tensor in (x, dt, A, B, C, h0)]
        if handles(*tensors):
            y, h, _ = forward(*tensors, signed, torch.is_grad_enabled())
        else:
            y, h = reference.selective_scan(*tensors, signed)
    return y.to(x.dtype), h


STRETCH = 16
"""The least number of steps in a stretch. The states of so many steps fit into the second-level cache."""


def stretch_of(time: int) -> int:
    """How many steps lie between two states that the forward pass saves."""
    return max(STRETCH, math.isqrt(time))


@torch.library.custom_op("rule_extrapolation::selective_scan", mutates_args=(), device_types="cpu")
def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, signed: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the state after the last step and, if ``keep``, the states before each stretch of steps.

    The backward pass computes the other states again from those.
    """
    from rule_extrapolation.ops.selective_scan import cpu_numba

    check_shapes(x, dt, A, B, C, h0)
    outputs = forward_fake(x, dt, A, B, C, h0, signed, keep)
    cpu_numba.forward(x, dt, A, B, C, h0, signed, stretch_of(x.shape[1]), outputs)
    return outputs


@torch.library.custom_op("rule_extrapolation::selective_scan_backward", mutates_args=(), device_types="cpu")
def backward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, saved: Tensor, dy: Tensor, dh: Tensor, signed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to x, dt, A, B, C and h0."""
    from rule_extrapolation.ops.selective_scan import cpu_numba

    return cpu_numba.backward(x, dt, A, B, C, signed, stretch_of(x.shape[1]), saved, dy, dh)


@forward.register_fake
def forward_fake(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, signed: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, time, channels), states = x.shape, A.shape[1]
    saved = x.new_empty(batch, -(-time // stretch_of(time)) if keep else 0, states, channels)
    return x.new_empty(x.shape), x.new_empty(batch, states, channels).mT, saved


@backward.register_fake
def backward_fake(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, saved: Tensor, dy: Tensor, dh: Tensor, signed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dense = (tensor.new_empty(tensor.shape) for tensor in (x, dt, A, B, C))
    return *dense, dh.new_empty(dh.mT.shape).mT


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.signed = inputs[6]
    ctx.save_for_backward(*inputs[:5], output[2])


def differentiate(ctx: Any, dy: Tensor, dh: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *backward(*ctx.saved_tensors, dy, dh, ctx.signed), None, None


forward.register_autograd(differentiate, setup_context=save)


def check_shapes(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor) -> None:
    (batch, time, channels), states = x.shape, A.shape[1]
    expected = 2 * [(batch, time, channels)] + [(channels, states)] + 2 * [(batch, time, states)]
    expected += [(batch, channels, states)]
    tensors = (x, dt, A, B, C, h0)
    if [tuple(tensor.shape) for tensor in tensors] != expected or len({tensor.dtype for tensor in tensors}) > 1:
        shapes = [(*tensor.shape, tensor.dtype) for tensor in tensors]
        raise ValueError(f"x, dt, A, B, C and h0 must be {expected}, of one dtype, not {shapes}")
