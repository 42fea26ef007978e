"""The compiled kernels of the linear recurrence."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import njit

from rule_extrapolation.ops.numba_tools import OPTIONS, claim, fields, kernel, row


@njit(**OPTIONS)
def step(a, b, h, h_next):
    for c in range(len(a)):
        h_next[c] = a[c] * h[c] + b[c]


@njit(**OPTIONS)
def step_back(a, h, dh_next, da, db, dh):
    """dh holds the gradient of a state by what comes behind it, and is turned into that of the state before."""
    for c in range(len(a) - 1, -1, -1):  # memory is read from end to start, as the steps are: caches see that coming
        d = dh_next[c] + dh[c]
        db[c] = d
        da[c] = d * h[c]
        dh[c] = d * a[c]


@cache
def kernels(dtype: type) -> tuple[Any, Any]:
    """(forward, backward), of jobs [0, tasks, time, channels, channels of a task, addresses]: a task is some channels
    of a batch row. The addresses are those of a, b, h0, h, and of a, h, h0, dh, da, db, dh0."""

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
