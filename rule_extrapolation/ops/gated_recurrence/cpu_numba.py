"""Compiled CPU kernels of the recurrences of minGRU (one gate) and minLSTM (two gates), gates included.

The state is kept with the weight keep - flip * take: ``flip`` is 0, or 1 for weights in [-1, 1].

``one`` is 1 in the dtype of the other arguments: with a plain 1, numba would compute in float64.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from numba import njit
from torch import Tensor

from rule_extrapolation.ops._kernels.launcher import NUMPY_TYPES, launch, width_of_task
from rule_extrapolation.ops._kernels.numba_tools import OPTIONS, claim, exp, fields, kernel, row


def forward(x: Tensor, h0: Tensor, gates: int, positive: bool, signed: bool) -> Tensor:
    h = x.new_empty(*x.shape[:2], h0.shape[1])
    forward_kernel, _ = kernels(x.dtype)
    run(forward_kernel, h, (gates, positive, signed), (x, h0), (h,))
    return h


def backward(
    x: Tensor, h0: Tensor, h: Tensor, dh: Tensor, gates: int, positive: bool, signed: bool
) -> tuple[Tensor, Tensor]:
    gradients = x.new_empty(x.shape), h0.new_empty(h0.shape)
    _, backward_kernel = kernels(x.dtype)
    run(backward_kernel, h, (gates, positive, signed), (x, h0, h, dh), gradients)
    return gradients


def run(
    kernel: Any, h: Tensor, options: tuple[int, ...], inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> None:
    batch, time, channels = h.shape
    width = width_of_task(batch, channels)
    tasks = batch * -(-channels // width)
    inputs = tuple(tensor.contiguous() for tensor in inputs)
    launch(kernel, tasks, (time, channels, width, *options), inputs + outputs, h.numel())


@njit(**OPTIONS)
def one_gate(z, one):
    """The weights of the old state and of the candidate, σ(-z) and σ(z)."""
    e = exp(-abs(z))
    large = one / (one + e)
    small = e * large
    return (small, large) if z > 0 else (large, small)


@njit(**OPTIONS)
def two_gates(f, i, one):
    """The weights σ(f) / (σ(f) + σ(i)) and σ(i) / (σ(f) + σ(i)), then σ(-f) and σ(-i).

    σ(x) = exp(min(x, 0)) / (1 + exp(-|x|)). The first factors may underflow, so the ratio is computed from their ratio.
    """
    e_f, e_i = exp(-abs(f)), exp(-abs(i))
    large_f, large_i = one / (one + e_f), one / (one + e_i)
    logit = min(f, one - one) - min(i, one - one)
    ratio = exp(-abs(logit))
    share_f = large_f if logit > 0 else ratio * large_f
    share_i = ratio * large_i if logit > 0 else large_i
    share = one / (share_f + share_i)
    by_f = e_f * large_f if f > 0 else large_f
    by_i = e_i * large_i if i > 0 else large_i
    return share_f * share, share_i * share, by_f, by_i


@njit(**OPTIONS)
def candidate(x, positive, one):
    """The candidate, g(x) if ``positive`` else x, and its derivative."""
    e = exp(x if x < 0 else one - one)
    sigmoid = e / (one + e)
    negative = positive and x < 0
    value = sigmoid if negative else (x + one / (one + one) if positive else x)
    return value, sigmoid / (one + e) if negative else one


@njit(**OPTIONS)
def step_one_gate(z, x, h, h_next, positive, flip, one):
    for c in range(len(x)):
        keep, take = one_gate(z[c], one)
        h_next[c] = (keep - flip * take) * h[c] + take * candidate(x[c], positive, one)[0]


@njit(**OPTIONS)
def step_two_gates(f, i, x, h, h_next, positive, flip, one):
    for c in range(len(x)):
        keep, take, _, _ = two_gates(f[c], i[c], one)
        h_next[c] = (keep - flip * take) * h[c] + take * candidate(x[c], positive, one)[0]


@njit(**OPTIONS)
def step_one_gate_back(z, x, h, dh_next, dz, dx, dh, positive, flip, one):
    """On entry, dh holds what later steps contribute to the gradient of h_next; on return, the gradient of h."""
    for c in range(len(x) - 1, -1, -1):
        keep, take = one_gate(z[c], one)
        value, slope = candidate(x[c], positive, one)
        d = dh_next[c] + dh[c]
        dz[c] = d * (value - (one + flip) * h[c]) * keep * take
        dx[c] = d * take * slope
        dh[c] = d * (keep - flip * take)


@njit(**OPTIONS)
def step_two_gates_back(f, i, x, h, dh_next, df, di, dx, dh, positive, flip, one):
    for c in range(len(x) - 1, -1, -1):
        keep, take, by_f, by_i = two_gates(f[c], i[c], one)
        value, slope = candidate(x[c], positive, one)
        d = dh_next[c] + dh[c]
        d_logit = d * ((one + flip) * h[c] - value) * keep * take
        df[c] = d_logit * by_f
        di[c] = -d_logit * by_i
        dx[c] = d * take * slope
        dh[c] = d * (keep - flip * take)


@cache
def kernels(torch_dtype: torch.dtype) -> tuple[Any, Any]:
    """(forward, backward), which take jobs [0, tasks, time, channels, channels of a task, gates, positive, signed,
    addresses].

    A task is some channels of a batch row. The addresses are those of x, h0, h for forward, and of x, h0, h, dh, dx,
    dh0 for backward.
    """
    dtype = NUMPY_TYPES[torch_dtype]
    one = dtype(1)

    @kernel
    def forward(job):
        tasks, time, channels, width, gates, positive, signed, x, h0, h = fields(job, 11)
        parts = (channels + width - 1) // width
        flip = one if signed else one - one
        task = claim(job)
        while task < tasks:
            i, start = task // parts, task % parts * width
            n = min(width, channels - start)
            before = row(h0, i * channels + start, n, dtype)
            for t in range(time):
                step = i * time + t
                at = step * (gates + 1) * channels + start
                first, second = row(x, at, n, dtype), row(x, at + channels, n, dtype)
                now = row(h, step * channels + start, n, dtype)
                if gates == 1:
                    step_one_gate(first, second, before, now, positive != 0, flip, one)
                else:
                    third = row(x, at + 2 * channels, n, dtype)
                    step_two_gates(first, second, third, before, now, positive != 0, flip, one)
                before = now
            task = claim(job)

    @kernel
    def backward(job):
        tasks, time, channels, width, gates, positive, signed, x, h0, h, dh, dx, dh0 = fields(job, 14)
        parts = (channels + width - 1) // width
        flip = one if signed else one - one
        task = claim(job)
        while task < tasks:
            i, start = task // parts, task % parts * width
            n = min(width, channels - start)
            d = row(dh0, i * channels + start, n, dtype)
            d[:] = 0
            for t in range(time - 1, -1, -1):
                step = i * time + t
                here = step * channels + start
                at = here + step * gates * channels
                before = row(h, here - channels, n, dtype) if t else row(h0, i * channels + start, n, dtype)
                new = row(dh, here, n, dtype)
                first, second = row(x, at, n, dtype), row(x, at + channels, n, dtype)
                d_first, d_second = row(dx, at, n, dtype), row(dx, at + channels, n, dtype)
                if gates == 1:
                    step_one_gate_back(first, second, before, new, d_first, d_second, d, positive != 0, flip, one)
                else:
                    third, d_third = row(x, at + 2 * channels, n, dtype), row(dx, at + 2 * channels, n, dtype)
                    step_two_gates_back(
                        first, second, third, before, new, d_first, d_second, d_third, d, positive != 0, flip, one
                    )
            task = claim(job)

    return forward, backward
