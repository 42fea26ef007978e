"""Compiled CPU kernels of the selective scan.

A task is WIDTH channels of a batch row, so that their states stay in the first-level cache. The innermost loops run
over channels, so that they are vectorised for any number of states.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from rule_extrapolation.ops._kernels.launcher import NUMPY_TYPES, launch
from rule_extrapolation.ops._kernels.numba_tools import OPTIONS, SUM_OPTIONS, claim, exp, fields, kernel, row

WIDTH = 128

ONE = np.float32(1)


Outputs = tuple[Tensor, Tensor, Tensor]
"""y, h and the states before each stretch, which may be empty."""


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, signed: bool, stretch: int, outputs: Outputs
) -> None:
    """Write the results into ``outputs``."""
    y, h, saved = outputs
    forward_kernel, _ = kernels(x.dtype)
    run(forward_kernel, stretch, signed, (x, dt, A.mT, B, C, h0.mT), (h.mT, saved, y))


def backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    signed: bool,
    stretch: int,
    saved: Tensor,
    dy: Tensor,
    dh: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, _, channels), states = x.shape, A.shape[1]
    d_x, d_dt, d_h = x.new_empty(x.shape), x.new_empty(x.shape), dh.mT.clone(memory_format=torch.contiguous_format)
    d_A = x.new_empty(batch, states, channels)
    d_B, d_C = x.new_empty(2, batch, -(-channels // WIDTH), *B.shape[1:])
    _, backward_kernel = kernels(x.dtype)
    run(backward_kernel, stretch, signed, (x, dt, A.mT, B, C, saved, dy), (d_x, d_dt, d_A, d_B, d_C, d_h))
    return d_x, d_dt, d_A.sum(0).mT.contiguous(), d_B.sum(1), d_C.sum(1), d_h.mT


def run(kernel: Any, stretch: int, signed: bool, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    x, _, A, *_ = inputs
    (batch, time, channels), states = x.shape, A.shape[0]
    tasks = batch * -(-channels // WIDTH)
    inputs = tuple(tensor.contiguous() for tensor in inputs)
    launch(kernel, tasks, (time, channels, states, stretch, signed), inputs + outputs, states * x.numel())


@njit(**OPTIONS)
def product(a, b, out):
    for d in range(len(out)):
        out[d] = a[d] * b[d]


@njit(**SUM_OPTIONS)
def dot(a, b, zero):
    total = zero
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@njit(**OPTIONS)
def step(dt, A, u, B, C, h, y, flip):
    for d in range(len(y)):
        e = exp(dt[d] * A[d])
        h[d] = (e + flip * (e - ONE)) * h[d] + u[d] * B
        y[d] += h[d] * C


@njit(**OPTIONS)
def step_again(dt, A, u, B, h, decay, h_next, flip):
    for d in range(len(h)):
        e = exp(dt[d] * A[d])
        decay[d] = e
        h_next[d] = (e + flip * (e - ONE)) * h[d] + u[d] * B


@njit(**OPTIONS)
def step_back(dt, A, u, B, C, h, h_next, decay, dy, du, d_dt, dA, dh, flip):
    """Returns the gradients of B and C. On entry, dh holds what later steps contribute to the gradient of h_next; on
    return, the gradient of h."""
    for d in range(len(h)):
        dh[d] += dy[d] * C
    dB, dC = dot(u, dh, B - B), dot(dy, h_next, C - C)
    for d in range(len(h)):
        g = dh[d]
        du[d] += g * B
        dh[d] = g * (decay[d] + flip * (decay[d] - ONE))
        d_exponent = g * (decay[d] + flip * decay[d]) * h[d]
        dA[d] += d_exponent * dt[d]
        d_dt[d] += d_exponent * A[d]
    return dB, dC


@cache
def kernels(torch_dtype: torch.dtype) -> tuple[Any, Any]:
    """(forward, backward), which take jobs [0, tasks, time, channels, states, stretch, signed, addresses].

    The addresses are those of x, dt, A, B, C, h0, h, saved, y for forward, and of x, dt, A, B, C, saved, dy, dx, d_dt,
    dA, dB, dC, dh for backward. States are (batch, N, D) and A is (N, D); h is the state after the last step. ``saved``
    is (batch, stretches, N, D), the states before each stretch, or its address is 0. dA is (batch, N, D), to be summed
    over the batch; dB and dC are (batch, parts, T, N), to be summed over the parts.
    """
    dtype = NUMPY_TYPES[torch_dtype]

    @kernel
    def forward(job):
        tasks, time, channels, states, stretch, signed, x, dt, A, B, C, h0, h, saved, y = fields(job, 16)
        parts, stretches = (channels + WIDTH - 1) // WIDTH, (time + stretch - 1) // stretch
        flip = dtype(1) if signed else dtype(0)
        u = np.empty(WIDTH, dtype)
        task = claim(job)
        while task < tasks:
            i, start = task // parts, task % parts * WIDTH
            n = min(WIDTH, channels - start)
            us = u[:n]
            for t in range(time):
                at = (i * time + t) * channels + start
                dts, ys = row(dt, at, n, dtype), row(y, at, n, dtype)
                product(dts, row(x, at, n, dtype), us)
                ys[:] = 0
                Bs, Cs = row(B, (i * time + t) * states, states, dtype), row(C, (i * time + t) * states, states, dtype)
                for s in range(states):
                    state = (i * states + s) * channels + start
                    hs = row(h, state, n, dtype)
                    if t == 0:
                        hs[:] = row(h0, state, n, dtype)
                    if saved != 0 and t % stretch == 0:
                        row(saved, ((i * stretches + t // stretch) * states + s) * channels + start, n, dtype)[:] = hs
                    step(dts, row(A, s * channels + start, n, dtype), us, Bs[s], Cs[s], hs, ys, flip)
            task = claim(job)

    @kernel
    def backward(job):
        tasks, time, channels, states, stretch, signed, x, dt, A, B, C, saved, dy, dx, d_dt, dA, dB, dC, dh = fields(
            job, 20
        )
        parts, stretches = (channels + WIDTH - 1) // WIDTH, (time + stretch - 1) // stretch
        flip = dtype(1) if signed else dtype(0)
        us, du = np.empty((stretch, WIDTH), dtype), np.empty(WIDTH, dtype)
        hs, decays = np.empty((stretch + 1, states, WIDTH), dtype), np.empty((stretch, states, WIDTH), dtype)
        task = claim(job)
        while task < tasks:
            i, start = task // parts, task % parts * WIDTH
            n = min(WIDTH, channels - start)
            for s in range(states):
                row(dA, (i * states + s) * channels + start, n, dtype)[:] = 0
            for k in range(stretches - 1, -1, -1):
                first = k * stretch
                for s in range(states):
                    hs[0, s, :n] = row(saved, ((i * stretches + k) * states + s) * channels + start, n, dtype)
                for j in range(min(stretch, time - first)):
                    at = (i * time + first + j) * channels + start
                    dts, Bs = row(dt, at, n, dtype), row(B, (i * time + first + j) * states, states, dtype)
                    product(dts, row(x, at, n, dtype), us[j, :n])
                    for s in range(states):
                        As = row(A, s * channels + start, n, dtype)
                        step_again(dts, As, us[j, :n], Bs[s], hs[j, s, :n], decays[j, s, :n], hs[j + 1, s, :n], flip)
                for j in range(min(stretch, time - first) - 1, -1, -1):
                    step = i * time + first + j
                    at = step * channels + start
                    dts, xs, dys = row(dt, at, n, dtype), row(x, at, n, dtype), row(dy, at, n, dtype)
                    d_dts, dxs = row(d_dt, at, n, dtype), row(dx, at, n, dtype)
                    Bs, Cs = row(B, step * states, states, dtype), row(C, step * states, states, dtype)
                    part = ((i * parts + task % parts) * time + first + j) * states
                    dBs, dCs = row(dB, part, states, dtype), row(dC, part, states, dtype)
                    dus = du[:n]
                    dus[:] = 0
                    d_dts[:] = 0
                    for s in range(states):
                        As = row(A, s * channels + start, n, dtype)
                        state = (i * states + s) * channels + start
                        dBs[s], dCs[s] = step_back(
                            dts, As, us[j, :n], Bs[s], Cs[s], hs[j, s, :n], hs[j + 1, s, :n], decays[j, s, :n],
                            dys, dus, d_dts, row(dA, state, n, dtype), row(dh, state, n, dtype), flip,
                        )  # fmt: skip
                    for d in range(n):
                        dxs[d] = dus[d] * dts[d]
                        d_dts[d] += dus[d] * xs[d]
            task = claim(job)

    return forward, backward
