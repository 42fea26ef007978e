"""The recurrences of minLSTM and minGRU, from the pre-activations of their gates and candidates, in one compiled pass.

A state is a_t * h_{t-1} + (1 - a_t) * c_t, where a_t comes from the gates and c_t is the candidate. What the gates come
to is never stored; the backward pass computes it anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rule_extrapolation.ops import compiled


def mingru(x: Tensor, h0: Tensor, positive: bool) -> Tensor:
    """a_t = σ(-z_t), from the pre-activations z and c, beside each other in x.

    Args:
        x: (batch, time, 2 * channels), on the CPU.
        h0: (batch, channels), the state before the first step.
        positive: candidates are g(c), of appendix B.3 of arXiv 2410.01201, rather than c.

    Returns:
        (batch, time, channels) states. Computed in float32 at least. Differentiable once.

    Raises:
        ValueError: shapes that do not fit.
    """
    return gated_recurrence(x, h0, 1, positive)


def minlstm(x: Tensor, h0: Tensor, positive: bool) -> Tensor:
    """a_t = σ(f_t) / (σ(f_t) + σ(i_t)), from f, i and c: else as ``mingru``, with 3 * channels."""
    return gated_recurrence(x, h0, 2, positive)


def gated_recurrence(x: Tensor, h0: Tensor, gates: int, positive: bool) -> Tensor:
    dtype = compiled.compute_dtype(x, h0)
    return forward(x.to(dtype), h0.to(dtype), gates, positive).to(torch.promote_types(x.dtype, h0.dtype))


@torch.library.custom_op("rule_extrapolation::gated_recurrence", mutates_args=(), device_types="cpu")
def forward(x: Tensor, h0: Tensor, gates: int, positive: bool) -> Tensor:
    check_shapes(x, h0, gates)
    h = x.new_empty(*x.shape[:2], h0.shape[1])
    launch(0, h, gates, positive, (x, h0), (h,))
    return h


@torch.library.custom_op("rule_extrapolation::gated_recurrence_backward", mutates_args=(), device_types="cpu")
def backward(x: Tensor, h0: Tensor, h: Tensor, dh: Tensor, gates: int, positive: bool) -> tuple[Tensor, Tensor]:
    check_shapes(x, h0, gates)
    gradients = x.new_empty(x.shape), h0.new_empty(h0.shape)
    launch(1, h, gates, positive, (x, h0, h, dh), gradients)
    return gradients


def launch(
    which: int, h: Tensor, gates: int, positive: bool, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> None:
    """Run the forward (0) or the backward kernel (1)."""
    from rule_extrapolation.ops.gated_recurrence_numba import kernels

    batch, time, channels = h.shape
    width = compiled.width_of_task(batch, channels)
    tasks = batch * -(-channels // width)
    inputs = tuple(tensor.contiguous() for tensor in inputs)
    kernel = kernels(compiled.NUMPY_TYPES[h.dtype])[which]
    compiled.launch(kernel, tasks, (time, channels, width, gates, positive), inputs + outputs, h.numel())


@forward.register_fake
def forward_fake(x: Tensor, h0: Tensor, gates: int, positive: bool) -> Tensor:
    return x.new_empty(*x.shape[:2], h0.shape[1])


@backward.register_fake
def backward_fake(x: Tensor, h0: Tensor, h: Tensor, dh: Tensor, gates: int, positive: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), h0.new_empty(h0.shape)


def save(ctx: Any, inputs: tuple[Tensor, Tensor, int, bool], output: Tensor) -> None:
    x, h0, ctx.gates, ctx.positive = inputs
    ctx.save_for_backward(x, h0, output)


def differentiate(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *backward(*ctx.saved_tensors, dh, ctx.gates, ctx.positive), None, None


forward.register_autograd(differentiate, setup_context=save)
compiled.fold_into_batch(forward)


def check_shapes(x: Tensor, h0: Tensor, gates: int) -> None:
    if x.ndim != 3 or h0.ndim != 2 or x.shape[::2] != (len(h0), (gates + 1) * h0.shape[1]) or x.dtype != h0.dtype:
        expected = f"(batch, time, {gates + 1} * channels) and h0 (batch, channels)"
        raise ValueError(f"x must be {expected}, of one dtype, not {(*x.shape, x.dtype)} and {(*h0.shape, h0.dtype)}")
