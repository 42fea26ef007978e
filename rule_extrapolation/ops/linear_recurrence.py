"""The linear recurrence h_t = a_t * h_{t-1} + b_t, elementwise.

Every function takes and returns (batch, time, channels) and an initial state of (batch, channels), and gives the same
values. ``auto`` is the quickest: one pass, compiled, where there is a compiler. ``sequential`` is the definition;
``parallel`` needs about log2(time) passes instead of ``time``; ``log_space`` takes the logarithms of positive
coefficients, where products of many small gates do not underflow.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from rule_extrapolation.ops import compiled

LOG_SPACE_CHUNK = 16


def auto(a: Tensor, b: Tensor, h0: Tensor | None = None) -> Tensor:
    """By a kernel, in float32 at least: on a CPU numba's, on CUDA Triton's. Without them as ``sequential``, or on
    other devices as ``parallel``. No h0 is zero. Differentiable any number of times
    by torch.autograd; torch.func.grad takes ``sequential`` and ``parallel`` alone.

    Raises:
        ValueError: shapes that do not fit.
    """
    if h0 is None:
        h0 = a.new_zeros(len(a), a.shape[2])
    if compiled.handles(a, b, h0) or (a.is_cuda and has_triton()):
        dtype = compiled.compute_dtype(a, b, h0)
        return forward(a.to(dtype), b.to(dtype), h0.to(dtype)).to(torch.result_type(a, b))
    return (sequential if a.device.type == "cpu" else parallel)(a, b, h0)


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


@torch.library.custom_op("rule_extrapolation::linear_recurrence", mutates_args=(), device_types="cpu")
def forward(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """``auto``, of tensors of one dtype, float32 or float64."""
    check_shapes(a, b, h0)
    h = a.new_empty(a.shape)
    launch(0, a, (a, b, h0), (h,))
    return h


@torch.library.custom_op("rule_extrapolation::linear_recurrence_backward", mutates_args=(), device_types="cpu")
def backward(a: Tensor, h: Tensor, h0: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a, b and h0, from that of the states by all but one another."""
    check_shapes(a, h, h0)
    check_shapes(a, dh, h0)
    gradients = a.new_empty(a.shape), a.new_empty(a.shape), h0.new_empty(h0.shape)
    launch(1, a, (a, h, h0, dh), gradients)
    return gradients


def launch(which: int, a: Tensor, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """Run the forward (0) or the backward kernel (1)."""
    from rule_extrapolation.ops.linear_recurrence_numba import kernels

    batch, time, channels = a.shape
    width = compiled.width_of_task(batch, channels)
    tasks = batch * -(-channels // width)
    inputs = tuple(tensor.contiguous() for tensor in inputs)
    kernel = kernels(compiled.NUMPY_TYPES[a.dtype])[which]
    compiled.launch(kernel, tasks, (time, channels, width), inputs + outputs, a.numel())


@forward.register_kernel("cuda")
def forward_cuda(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    from rule_extrapolation.ops import linear_recurrence_triton

    check_shapes(a, b, h0)
    return linear_recurrence_triton.forward(a, b, h0)


@backward.register_kernel("cuda")
def backward_cuda(a: Tensor, h: Tensor, h0: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from rule_extrapolation.ops import linear_recurrence_triton

    check_shapes(a, dh, h0)
    return linear_recurrence_triton.backward(a, h, h0, dh)


@forward.register_fake
def forward_fake(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    return a.new_empty(a.shape)


@backward.register_fake
def backward_fake(a: Tensor, h: Tensor, h0: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), a.new_empty(a.shape), h0.new_empty(h0.shape)


def save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    a, _, h0 = inputs
    ctx.save_for_backward(a, output, h0)


def differentiate(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, h, h0 = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return backward(a, h, h0, dh)
    # To be differentiated again. The gradient of a state is the same recurrence, from end to start.
    behind = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)[:, : a.shape[1]]
    db = forward(behind.flip(1), dh.flip(1), torch.zeros_like(h0)).flip(1)
    before = torch.cat([h0[:, None], h], 1)[:, :-1]
    return db * before, db, (a[:, :1] * db[:, :1]).sum(1)


forward.register_autograd(differentiate, setup_context=save)
compiled.fold_into_batch(forward)


def check_shapes(a: Tensor, b: Tensor, h0: Tensor) -> None:
    tensors = (a, b, h0)
    fit = a.ndim == 3 and a.shape == b.shape and h0.shape == (a.shape[0], a.shape[2])
    if not fit or len({tensor.dtype for tensor in tensors}) > 1:
        shapes = [(*tensor.shape, tensor.dtype) for tensor in tensors]
        raise ValueError(f"a, b (batch, time, channels) and h0 (batch, channels) must be of one dtype, not {shapes}")


def sequential(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """One step after the other."""
    h, states = h0, []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1)):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states, 1)


def parallel(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """Prefix scan (Hillis & Steele 1986): composing two steps, (a, b) then (a', b'), gives (a a', a' b + b')."""
    b = torch.cat([b[:, :1] + a[:, :1] * h0[:, None], b[:, 1:]], 1)
    reach = 1
    while reach < b.shape[1]:
        b = torch.cat([b[:, :reach], b[:, reach:] + a[:, reach:] * b[:, :-reach]], 1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], 1)
        reach *= 2
    return b


def log_space(log_a: Tensor, log_b: Tensor, h0: Tensor) -> Tensor:
    """From log a_t and log b_t, with h_0 >= 0 (Heinsen 2023, arXiv 2311.06281).

    h_t = exp(A_t) (h_0 + sum_s exp(log b_s - A_s)), where A is the cumulative sum of log a.
    """
    chunks = []
    # A grows with time, and rounding errors with A: past a few steps, the sums begin anew from the state reached.
    for log_a_chunk, log_b_chunk in zip(log_a.split(LOG_SPACE_CHUNK, 1), log_b.split(LOG_SPACE_CHUNK, 1)):
        # log 0 would be -inf, whose gradient is nan; the least positive number vanishes in every sum just as well.
        log_h0 = h0.clamp_min(torch.finfo(h0.dtype).tiny).log()[:, None]
        log_a_sum = log_a_chunk.cumsum(1)
        log_sum = torch.cat([log_h0, log_b_chunk - log_a_sum], 1).logcumsumexp(1)[:, 1:]
        chunks.append((log_a_sum + log_sum).exp())
        h0 = chunks[-1][:, -1]
    return torch.cat(chunks, 1)
