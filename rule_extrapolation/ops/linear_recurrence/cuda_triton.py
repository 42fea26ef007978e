"""CUDA kernels of the linear recurrence. The tests run them in Triton's interpreter on a CPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32
"""Channels of a program, a warp, which computes all steps of a batch row."""


@triton.jit
def forward_kernel(a, b, h0, h, time, channels, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    state = tl.load(h0 + row * channels + c, inside, 0.0)
    for t in range(time):
        at = (row * time + t) * channels + c
        state = tl.load(a + at, inside, 0.0) * state + tl.load(b + at, inside, 0.0)
        tl.store(h + at, state, inside)


@triton.jit
def backward_kernel(a, h, h0, dh, da, db, dh0, time, channels, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    first = tl.load(h0 + row * channels + c, inside, 0.0)
    later = tl.zeros_like(first)
    at = (row * time + time - 1) * channels + c
    for _ in range(time - 1):
        d = tl.load(dh + at, inside, 0.0) + later
        tl.store(db + at, d, inside)
        tl.store(da + at, d * tl.load(h + at - channels, inside, 0.0), inside)
        later = d * tl.load(a + at, inside, 0.0)
        at -= channels
    d = tl.load(dh + at, inside, 0.0) + later
    tl.store(db + at, d, inside)
    tl.store(da + at, d * first, inside)
    tl.store(dh0 + row * channels + c, d * tl.load(a + at, inside, 0.0), inside)


def forward(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    h = a.new_empty(a.shape)
    launch(forward_kernel, a, (a, b, h0), (h,))
    return h


def backward(a: Tensor, h: Tensor, h0: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients = a.new_empty(a.shape), a.new_empty(a.shape), h0.new_zeros(h0.shape)
    launch(backward_kernel, a, (a, h, h0, dh), gradients)
    return gradients


def launch(kernel: triton.JITFunction, a: Tensor, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    batch, time, channels = a.shape
    if a.numel():
        with torch.cuda.device_of(a):
            grid = (batch, triton.cdiv(channels, BLOCK))
            inputs = tuple(tensor.contiguous() for tensor in inputs)
            kernel[grid](*inputs, *outputs, time, channels, BLOCK=BLOCK, num_warps=1)
