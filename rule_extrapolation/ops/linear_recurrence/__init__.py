"""The elementwise linear recurrence h_t = a_t * h_{t-1} + b_t.

All functions give the same values. ``auto`` is the fastest: one pass in a compiled kernel where there is one.
``sequential`` is the definition, ``parallel`` a prefix scan, and ``log_space`` takes the logarithms of positive a and
b.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from rule_extrapolation.core.errors import check_choice
from rule_extrapolation.ops._kernels.launcher import compute_dtype, fold_into_batch, handles
from rule_extrapolation.ops.linear_recurrence.reference import log_space, parallel, sequential

__all__ = ["SCANS", "auto", "log_space", "parallel", "scan_named", "sequential"]


def auto(a: Tensor, b: Tensor, h0: Tensor | None = None) -> Tensor:
    """The states h_t = a_t * h_{t-1} + b_t, by the fastest implementation available.

    That is a compiled kernel on a CPU (numba) and on CUDA (Triton), which computes in float32 or float64. Without one
    it is ``sequential`` on a CPU and ``parallel`` on other devices. torch.autograd can differentiate the result any
    number of times; torch.func.grad works only with ``sequential`` and ``parallel``.

    Args:
        a, b: (batch, time, channels).
        h0: (batch, channels), the state before the first step; None is zero.

    Returns:
        (batch, time, channels).

    Raises:
        ValueError: the shapes do not match.
    """
    if h0 is None:
        h0 = a.new_zeros(len(a), a.shape[2])
    if handles(a, b, h0) or (a.is_cuda and has_triton()):
        dtype = compute_dtype(a, b, h0)
        return forward(a.to(dtype), b.to(dtype), h0.to(dtype)).to(torch.result_type(a, b))
    return (sequential if a.device.type == "cpu" else parallel)(a, b, h0)


SCANS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "auto": auto,
    "sequential": sequential,
    "parallel": parallel,
}
"""The functions of a, b and h0, by the name that a configuration has for them."""


def scan_named(scan: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The function of that name.

    Raises:
        ConfigError: there is none.
    """
    check_choice(SCANS, scan=scan)
    return SCANS[scan]


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


@torch.library.custom_op("rule_extrapolation::linear_recurrence", mutates_args=(), device_types="cpu")
def forward(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """``auto`` for tensors of one dtype, float32 or float64."""
    from rule_extrapolation.ops.linear_recurrence import cpu_numba

    check_shapes(a, b, h0)
    return cpu_numba.forward(a, b, h0)


@torch.library.custom_op("rule_extrapolation::linear_recurrence_backward", mutates_args=(), device_types="cpu")
def backward(a: Tensor, h: Tensor, h0: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to a, b and h0. dh is the gradient with respect to the states as an output, without
    what each state contributes to later ones."""
    from rule_extrapolation.ops.linear_recurrence import cpu_numba

    check_shapes(a, h, h0)
    check_shapes(a, dh, h0)
    return cpu_numba.backward(a, h, h0, dh)


@forward.register_kernel("cuda")
def forward_cuda(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    from rule_extrapolation.ops.linear_recurrence import cuda_triton

    check_shapes(a, b, h0)
    return cuda_triton.forward(a, b, h0)


@backward.register_kernel("cuda")
def backward_cuda(a: Tensor, h: Tensor, h0: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from rule_extrapolation.ops.linear_recurrence import cuda_triton

    check_shapes(a, dh, h0)
    return cuda_triton.backward(a, h, h0, dh)


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
    # A form that can be differentiated again: db_t = dh_t + a_{t+1} db_{t+1}, the same recurrence in reverse.
    next_a = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)[:, : a.shape[1]]
    db = forward(next_a.flip(1), dh.flip(1), torch.zeros_like(h0)).flip(1)
    before = torch.cat([h0[:, None], h], 1)[:, :-1]
    return db * before, db, (a[:, :1] * db[:, :1]).sum(1)


forward.register_autograd(differentiate, setup_context=save)
fold_into_batch(forward)


def check_shapes(a: Tensor, b: Tensor, h0: Tensor) -> None:
    tensors = (a, b, h0)
    fit = a.ndim == 3 and a.shape == b.shape and h0.shape == (a.shape[0], a.shape[2])
    if not fit or len({tensor.dtype for tensor in tensors}) > 1:
        shapes = [(*tensor.shape, tensor.dtype) for tensor in tensors]
        raise ValueError(f"a, b (batch, time, channels) and h0 (batch, channels) must be of one dtype, not {shapes}")
