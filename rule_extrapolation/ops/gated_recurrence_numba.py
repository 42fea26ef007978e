"""The compiled kernels of the recurrences of minGRU (one gate) and minLSTM (two), gates included.

``one`` is 1 in the dtype of everything else: with a plain 1, numba would compute in float64.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit

from rule_extrapolation.ops.numba_tools import OPTIONS, claim, exp, fields, kernel, row

LARGE = np.float32(80)
"""exp(80) is finite even twice in float32, and exp(-80) is nothing beside 1."""


@njit(**OPTIONS)
def one_gate(z, one):
    """The shares of the old state and of the candidate, σ(-z) and σ(z)."""
    e = exp(LARGE if -z > LARGE else -z)
    share = one / (one + e)
    return e * share, share


@njit(**OPTIONS)
def two_gates(f, i, one):
    """The shares σ(f) and σ(i), over their sum; and σ(-f) and σ(-i).

    All from e^-f and e^-i, both scaled down where one of them is beyond a float, so that their ratio stays.
    """
    low = f if f < i else i
    shift = -low - LARGE if low < -LARGE else one - one
    e_f, e_i = exp(-f - shift), exp(-i - shift)
    share = one / (one + one + e_f + e_i)
    return (one + e_i) * share, (one + e_f) * share, e_f / (one + e_f), e_i / (one + e_i)


@njit(**OPTIONS)
def candidate(x, positive, one):
    """x, or where it is to be positive g(x); and the derivative. g(x) is σ(x) below 0, else x + 0.5."""
    e = exp(x if x < 0 else one - one)
    sigmoid = e / (one + e)
    negative = positive and x < 0
    value = sigmoid if negative else (x + one / (one + one) if positive else x)
    return value, sigmoid / (one + e) if negative else one


@njit(**OPTIONS)
def step_one(z, x, h, h_next, positive, one):
    for c in range(len(x)):
        keep, take = one_gate(z[c], one)
        h_next[c] = keep * h[c] + take * candidate(x[c], positive, one)[0]


@njit(**OPTIONS)
def step_two(f, i, x, h, h_next, positive, one):
    for c in range(len(x)):
        keep, take, _, _ = two_gates(f[c], i[c], one)
        h_next[c] = keep * h[c] + take * candidate(x[c], positive, one)[0]


@njit(**OPTIONS)
def step_one_back(z, x, h, dh_next, dz, dx, dh, positive, one):
    """dh holds the gradient of a state by what comes behind it, and is turned into that of the state before."""
    for c in range(len(x) - 1, -1, -1):
        keep, take = one_gate(z[c], one)
        value, slope = candidate(x[c], positive, one)
        d = dh_next[c] + dh[c]
        dz[c] = d * (value - h[c]) * keep * take
        dx[c] = d * take * slope
        dh[c] = d * keep


@njit(**OPTIONS)
def step_two_back(f, i, x, h, dh_next, df, di, dx, dh, positive, one):
    for c in range(len(x) - 1, -1, -1):
        keep, take, by_f, by_i = two_gates(f[c], i[c], one)
        value, slope = candidate(x[c], positive, one)
        d = dh_next[c] + dh[c]
        d_logit = d * (h[c] - value) * keep * take
        df[c] = d_logit * by_f
        di[c] = -d_logit * by_i
        dx[c] = d * take * slope
        dh[c] = d * keep


@cache
def kernels(dtype: type) -> tuple[Any, Any]:
    """(forward, backward), of jobs [0, tasks, time, channels, channels of a task, gates, positive, addresses]: a task
    is some channels of a batch row. The addresses are those of x, h0, h, and of x, h0, h, dh, dx, dh0."""
    one = dtype(1)

    @kernel
    def forward(job):
        tasks, time, channels, width, gates, positive, x, h0, h = fields(job, 10)
        parts = (channels + width - 1) // width
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
                    step_one(first, second, before, now, positive != 0, one)
                else:
                    third = row(x, at + 2 * channels, n, dtype)
                    step_two(first, second, third, before, now, positive != 0, one)
                before = now
            task = claim(job)

    @kernel
    def backward(job):
        tasks, time, channels, width, gates, positive, x, h0, h, dh, dx, dh0 = fields(job, 13)
        parts = (channels + width - 1) // width
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
                    step_one_back(first, second, before, new, d_first, d_second, d, positive != 0, one)
                else:
                    third, d_third = row(x, at + 2 * channels, n, dtype), row(dx, at + 2 * channels, n, dtype)
                    step_two_back(first, second, third, before, new, d_first, d_second, d_third, d, positive != 0, one)
            task = claim(job)

    return forward, backward
