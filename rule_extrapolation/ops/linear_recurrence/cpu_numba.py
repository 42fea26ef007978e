"""Compiled CPU kernels of the linear recurrence."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from numba import njit
from torch import Tensor

from rule_extrapolation.ops._kernels.launcher import NUMPY_TYPES, launch, width_of_task
from rule_extrapolation.ops._kernels.numba_tools import OPTIONS, claim, fields, kernel, row


def forward(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    h = a.new_empty(a.shape)
    forward_kernel, _ = kernels(a.dtype)
    run(forward_kernel, a, (a, b, h0), (h,))
    return h


def backward(a: Tensor, h: Tensor, h0: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients = a.new_empty(a.shape), a.new_empty(a.shape), h0.new_empty(h0.shape)
    _, backward_kernel = kernels(a.dtype)
    run(backward_kernel, a, (a, h, h0, dh), gradients)
    return gradients


def run(kernel: Any, a: Tensor, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    batch, time, channels = a.shape
    width = width_of_task(batch, channels)
    tasks = batch * -(-channels // width)
    inputs = tuple(tensor.contiguous() for tensor in inputs)
    launch(kernel, tasks, (time, channels, width), inputs + outputs, a.numel())


@njit(**OPTIONS)
def step(a, b, h, h_next):
    for c in range(len(a)):
        h_next[c] = a[c] * h[c] + b[c]


@njit(**OPTIONS)
def step_back(a, h, dh_next, da, db, dh):
    """On entry, dh holds what later steps contribute to the gradient of h_next; on return, the gradient of h."""
    for c in range(len(a) - 1, -1, -1):  # from end to start, like the steps, so that the hardware can prefetch
        d = dh_next[c] + dh[c]
        db[c] = d
        da[c] = d * h[c]
        dh[c] = d * a[c]


@cache
def kernels(torch_dtype: torch.dtype) -> tuple[Any, Any]:
    """(forward, backward), which take jobs [0, tasks, time, channels, channels of a task, addresses].

    A task is some channels of a batch row. The addresses are those of a, b, h0, h for forward, and of a, h, h0, dh, da,
    db, dh0 for backward.
    """
    dtype = NUMPY_TYPES[torch_dtype]

    @kernel
    def forward(job):
        tasks, time, channels, width, a, b, h0, h = fields(job, 9)
        parts = (channels + width - 1) // width
        task = claim(job)
        while task < tasks:
            i, start = task // parts, task % parts * width
            n = min(width, channels - start)
            before = row(h0, i * channels + start, n, dtype)
            for t in range(time):
                at = (i * time + t) * channels + start
                now = row(h, at, n, dtype)
                step(row(a, at, n, dtype), row(b, at, n, dtype), before, now)
                before = now
            task = claim(job)

    @kernel
    def backward(job):
        tasks, time, channels, width, a, h, h0, dh, da, db, dh0 = fields(job, 12)
        parts = (channels + width - 1) // width
        task = claim(job)
        while task < tasks:
            i, start = task // parts, task % parts * width
            n = min(width, channels - start)
            first = i * channels + start
            d = row(dh0, first, n, dtype)
            d[:] = 0
            for t in range(time - 1, -1, -1):
                at = (i * time + t) * channels + start
                before = row(h, at - channels, n, dtype) if t else row(h0, first, n, dtype)
                new = row(dh, at, n, dtype)
                step_back(row(a, at, n, dtype), before, new, row(da, at, n, dtype), row(db, at, n, dtype), d)
            task = claim(job)

    return forward, backward
