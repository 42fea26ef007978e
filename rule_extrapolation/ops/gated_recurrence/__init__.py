"""The recurrences of minGRU and minLSTM (Feng et al. 2024, arXiv 2410.01201), gates included.

    h_t = a_t * h_{t-1} + (1 - a_t) * c_t

The gates determine a_t in [0, 1], and c_t is the candidate. With ``signed``, the state is kept with the weight
2 a_t - 1 in [-1, 1] instead of a_t, and the candidate taken with 1 - a_t as before (Grazzi et al. 2024, arXiv
2411.12537, who do so in Mamba). The compiled kernel computes gates and states in one pass; it does
not store the gates but computes them again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rule_extrapolation.ops import linear_recurrence
from rule_extrapolation.ops._kernels.launcher import compute_dtype, fold_into_batch, handles
from rule_extrapolation.ops.gated_recurrence import reference
from rule_extrapolation.ops.gated_recurrence.reference import g, keep, mingru_keep_logit, minlstm_keep_logit

__all__ = ["g", "keep", "mingru", "mingru_keep_logit", "minlstm", "minlstm_keep_logit"]


def mingru(x: Tensor, h0: Tensor, positive: bool, signed: bool = False) -> Tensor:
    """The states of minGRU: a_t = 1 - z_t, where z_t = σ(update_t) (section 3.1).

    The compiled kernel computes in float32 or float64 and can be differentiated once. Without it, the gates are
    computed in the dtype of x and the states by ``linear_recurrence.auto``.

    Args:
        x: (batch, time, 2 * channels), the pre-activations of the update gate, then of the candidate.
        h0: (batch, channels), the state before the first step.
        positive: whether the candidate is g(c), which is positive (appendix B.3), instead of c.
        signed: whether the state is kept with the weight 2 a_t - 1 instead of a_t.

    Returns:
        (batch, time, channels).

    Raises:
        ValueError: the shapes do not match.
    """
    if handles(x, h0):
        return compiled(x, h0, 1, positive, signed)
    return reference.mingru(x, h0, positive, signed, linear_recurrence.auto)


def minlstm(x: Tensor, h0: Tensor, positive: bool, signed: bool = False) -> Tensor:
    """The states of minLSTM: a_t = f_t / (f_t + i_t), where f_t = σ(forget_t) and i_t = σ(input_t) (section 3.2).

    Args:
        x: (batch, time, 3 * channels), the pre-activations of the forget gate, the input gate and the candidate.
        h0, positive, signed: as in ``mingru``, and likewise the result.
    """
    if handles(x, h0):
        return compiled(x, h0, 2, positive, signed)
    return reference.minlstm(x, h0, positive, signed, linear_recurrence.auto)


def compiled(x: Tensor, h0: Tensor, gates: int, positive: bool, signed: bool) -> Tensor:
    dtype = compute_dtype(x, h0)
    return forward(x.to(dtype), h0.to(dtype), gates, positive, signed).to(torch.promote_types(x.dtype, h0.dtype))


@torch.library.custom_op("rule_extrapolation::gated_recurrence", mutates_args=(), device_types="cpu")
def forward(x: Tensor, h0: Tensor, gates: int, positive: bool, signed: bool) -> Tensor:
    """``mingru`` (one gate) or ``minlstm`` (two) for tensors of one dtype, float32 or float64."""
    from rule_extrapolation.ops.gated_recurrence import cpu_numba

    check_shapes(x, h0, gates)
    return cpu_numba.forward(x, h0, gates, positive, signed)


@torch.library.custom_op("rule_extrapolation::gated_recurrence_backward", mutates_args=(), device_types="cpu")
def backward(
    x: Tensor, h0: Tensor, h: Tensor, dh: Tensor, gates: int, positive: bool, signed: bool
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and h0."""
    from rule_extrapolation.ops.gated_recurrence import cpu_numba

    check_shapes(x, h0, gates)
    return cpu_numba.backward(x, h0, h, dh, gates, positive, signed)


@forward.register_fake
def forward_fake(x: Tensor, h0: Tensor, gates: int, positive: bool, signed: bool) -> Tensor:
    return x.new_empty(*x.shape[:2], h0.shape[1])


@backward.register_fake
def backward_fake(
    x: Tensor, h0: Tensor, h: Tensor, dh: Tensor, gates: int, positive: bool, signed: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), h0.new_empty(h0.shape)


def save(ctx: Any, inputs: tuple[Tensor, Tensor, int, bool, bool], output: Tensor) -> None:
    x, h0, ctx.gates, ctx.positive, ctx.signed = inputs
    ctx.save_for_backward(x, h0, output)


def differentiate(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    return *backward(*ctx.saved_tensors, dh, ctx.gates, ctx.positive, ctx.signed), None, None, None


forward.register_autograd(differentiate, setup_context=save)
fold_into_batch(forward)


def check_shapes(x: Tensor, h0: Tensor, gates: int) -> None:
    if x.ndim != 3 or h0.ndim != 2 or x.shape[::2] != (len(h0), (gates + 1) * h0.shape[1]) or x.dtype != h0.dtype:
        expected = f"(batch, time, {gates + 1} * channels) and h0 (batch, channels)"
        raise ValueError(f"x must be {expected}, of one dtype, not {(*x.shape, x.dtype)} and {(*h0.shape, h0.dtype)}")
