"""The compiled kernels of dropout. Whether an element is kept is a hash of its place and of the call's seed, so that
the backward pass needs no mask and threads need no generator each."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit

from rule_extrapolation.ops.numba_tools import OPTIONS, claim, fields, kernel, row

BLOCK = 16384
"""Elements of a task."""

GOLDEN, FIRST, SECOND = np.uint32(0x9E3779B9), np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


@njit(**OPTIONS)
def hashed(place, low, high):
    """Two rounds of Wellons' lowbias32, seeded before each. In 32 bits throughout, so that it is vectorised."""
    x = np.uint32(np.uint32(place) * GOLDEN) + low
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
    """What came out as 0 was dropped or not above 0."""
    for c in range(len(y)):
        dx[c] = zero if y[c] <= zero else dy[c] * scale


@cache
def kernels(dtype: type) -> tuple[Any, Any]:
    """(forward, backward of a ReLU with dropout), of jobs [0, tasks, elements, elements lost of 2^32, ...].

    Forward's go on with the two words of the seed, whether there is a ReLU, and the addresses of x and y; backward's
    with those of y, dy and dx. The backward pass of dropout alone is its forward pass.
    """
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
