"""Compiled CPU kernels of dropout.

A hash of the call's seed and of an element's index decides whether the element is kept. So the backward pass needs no
mask, and threads need no random generators of their own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from rule_extrapolation.ops._kernels.launcher import NUMPY_TYPES, launch
from rule_extrapolation.ops._kernels.numba_tools import OPTIONS, claim, fields, kernel, row

BLOCK = 16384
"""Elements of a task."""

GOLDEN, FIRST, SECOND = np.uint32(0x9E3779B9), np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


def forward(x: Tensor, low: int, high: int, drop_threshold: int, relu: bool) -> Tensor:
    """Drop elements whose hash, with a seed of the words ``low`` and ``high``, is below the threshold."""
    x = x.contiguous()
    y = torch.empty_like(x)
    forward_kernel, _ = kernels(x.dtype)
    run(forward_kernel, x, (drop_threshold, low, high, relu), (x, y))
    return y


def backward_of_relu(y: Tensor, dy: Tensor, drop_threshold: int) -> Tensor:
    """The gradient with respect to the input of ReLU and dropout, from their output y."""
    dx = torch.empty_like(y)
    _, backward_kernel = kernels(y.dtype)
    run(backward_kernel, y, (drop_threshold,), (y, dy.contiguous(), dx))
    return dx


def run(kernel: Any, x: Tensor, numbers: tuple[int, ...], tensors: tuple[Tensor, ...]) -> None:
    launch(kernel, -(-x.numel() // BLOCK), (x.numel(), *numbers), tensors, x.numel())


@njit(**OPTIONS)
def hashed(index, low, high):
    """Two rounds of Wellons' lowbias32, each seeded with a word. All in 32 bits, so that it is vectorised."""
    x = np.uint32(np.uint32(index) * GOLDEN) + low
    x = np.uint32(x) ^ (np.uint32(x) >> np.uint32(16))
    x = np.uint32(np.uint32(x) * FIRST)
    x = (x ^ (x >> np.uint32(15))) ^ high
    x = np.uint32(np.uint32(x) * SECOND)
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit(**OPTIONS)
def drop(x, y, start, low, high, drop_threshold, scale, zero):
    for c in range(len(x)):
        y[c] = x[c] * scale if hashed(start + c, low, high) >= drop_threshold else zero


@njit(**OPTIONS)
def drop_relu(x, y, start, low, high, drop_threshold, scale, zero):
    for c in range(len(x)):
        y[c] = zero if (hashed(start + c, low, high) < drop_threshold) | (x[c] <= zero) else x[c] * scale


@njit(**OPTIONS)
def drop_relu_back(y, dy, dx, scale, zero):
    """An output of 0 was dropped or came from an input that is not positive."""
    for c in range(len(y)):
        dx[c] = zero if y[c] <= zero else dy[c] * scale


@cache
def kernels(torch_dtype: torch.dtype) -> tuple[Any, Any]:
    """(forward, backward of a ReLU with dropout), which take jobs [0, tasks, elements, threshold, ...].

    These end with the two words of the seed, whether there is a ReLU, and the addresses of x and y for forward; with
    the addresses of y, dy and dx for backward. The backward pass of dropout without a ReLU is its forward pass.
    """
    dtype = NUMPY_TYPES[torch_dtype]
    zero = dtype(0)

    @kernel
    def forward(job):
        tasks, count, drop_threshold, low, high, relu, x, y = fields(job, 9)
        scale = dtype(4294967296.0 / (4294967296.0 - drop_threshold))
        low_word, high_word, least = np.uint32(low), np.uint32(high), np.uint32(drop_threshold)
        task = claim(job)
        while task < tasks:
            start = task * BLOCK
            n = min(BLOCK, count - start)
            source, target = row(x, start, n, dtype), row(y, start, n, dtype)
            if relu:
                drop_relu(source, target, start, low_word, high_word, least, scale, zero)
            else:
                drop(source, target, start, low_word, high_word, least, scale, zero)
            task = claim(job)

    @kernel
    def backward(job):
        tasks, count, drop_threshold, y, dy, dx = fields(job, 7)
        scale = dtype(4294967296.0 / (4294967296.0 - drop_threshold))
        task = claim(job)
        while task < tasks:
            start = task * BLOCK
            n = min(BLOCK, count - start)
            drop_relu_back(row(y, start, n, dtype), row(dy, start, n, dtype), row(dx, start, n, dtype), scale, zero)
            task = claim(job)

    return forward, backward
