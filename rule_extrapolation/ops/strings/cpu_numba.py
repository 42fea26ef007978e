"""Compiled CPU kernels of the queries on strings. Arguments and results are those of the functions in ``strings``.

Each kernel is made by a function of its own, so that only those in use are compiled. Jobs are [0, tasks, rows, rows of
a task, length, ..., addresses]. Rows are read a block at a time, since a loop that may end early is not vectorised.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL, PAD, SOS
from rule_extrapolation.ops._kernels.launcher import launch
from rule_extrapolation.ops._kernels.numba_tools import OPTIONS, claim, fields, kernel, row

ROWS = 64
"""Rows of a task."""
BLOCK = 64
"""Tokens of a block. At most 127, so that a position fits an int8."""


def truncate_at_eos(strings: Tensor) -> tuple[Tensor, Tensor]:
    batch, length = strings.shape
    strings = strings.long()
    if strings.stride(1) != 1:
        strings = strings.contiguous()
    symbols = strings.new_empty(batch, length, dtype=torch.int8)
    is_string = strings.new_empty(batch, dtype=torch.bool)
    run(truncate_at_eos_kernel(), symbols, (strings.stride(0),), (strings, symbols, is_string))
    return symbols, is_string


def frame(symbols: Tensor) -> Tensor:
    symbols = as_bytes(symbols)
    batch, length = symbols.shape
    rows = symbols.new_empty(batch, length + 2, dtype=torch.long)
    run(frame_kernel(), symbols, (), (symbols, rows))
    return rows


def count(symbols: Tensor, symbol: int) -> Tensor:
    return number_of_each(count_kernel(), symbols, symbol)


def first(symbols: Tensor, symbol: int) -> Tensor:
    return number_of_each(first_kernel(), symbols, symbol)


def last(symbols: Tensor, symbol: int) -> Tensor:
    return number_of_each(last_kernel(), symbols, symbol)


def matched(symbols: Tensor, opening: int) -> tuple[Tensor, Tensor]:
    return verdict_and_number(matched_kernel(), symbols, (opening,), ())


def nested(symbols: Tensor) -> tuple[Tensor, Tensor]:
    batch, length = symbols.shape
    stacks = torch.empty(num_tasks(batch), length + 2, dtype=torch.int8)
    return verdict_and_number(nested_kernel(), symbols, (), (stacks,))


def number_of_each(kernel: Any, symbols: Tensor, symbol: int) -> Tensor:
    symbols = as_bytes(symbols)
    numbers = symbols.new_empty(len(symbols), dtype=torch.int32)
    run(kernel, symbols, (symbol,), (symbols, numbers))
    return numbers


def verdict_and_number(
    kernel: Any, symbols: Tensor, sizes: tuple[int, ...], scratch: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    symbols = as_bytes(symbols)
    verdicts, numbers = (symbols.new_empty(len(symbols), dtype=dtype) for dtype in (torch.bool, torch.int32))
    run(kernel, symbols, sizes, (symbols, verdicts, numbers, *scratch))
    return verdicts, numbers


def as_bytes(symbols: Tensor) -> Tensor:
    return symbols.to(torch.int8).contiguous()


def num_tasks(batch: int) -> int:
    return -(-batch // ROWS)


def run(kernel: Any, symbols: Tensor, sizes: tuple[int, ...], tensors: tuple[Tensor, ...]) -> None:
    batch, length = symbols.shape
    launch(kernel, num_tasks(batch), (batch, ROWS, length, *sizes), tensors, symbols.numel())


@njit(**OPTIONS)
def copy_block(tokens, symbols):
    """Returns the index of the first token that is not a symbol, BLOCK if there is none."""
    end = np.int8(BLOCK)
    for t in range(len(tokens)):
        token = np.int8(tokens[t])
        symbols[t] = token
        end = min(end, np.int8(t) if token < FIRST_SYMBOL else np.int8(BLOCK))
    return np.int64(end)


@njit(**OPTIONS)
def pad_from(start, symbols):
    for t in range(len(symbols)):
        symbols[t] = np.int8(PAD) if np.int32(t) >= start else symbols[t]


@njit(**OPTIONS)
def first_in_block(symbols, symbol):
    """The index of the symbol's first occurrence, BLOCK if there is none."""
    at = np.int8(BLOCK)
    for t in range(len(symbols)):
        at = min(at, np.int8(t) if symbols[t] == symbol else np.int8(BLOCK))
    return np.int64(at)


@njit(**OPTIONS)
def last_in_block(symbols, symbol):
    """The index of the symbol's last occurrence, -1 if there is none."""
    at = np.int8(-1)
    for t in range(len(symbols)):
        at = max(at, np.int8(t) if symbols[t] == symbol else np.int8(-1))
    return np.int64(at)


@njit(**OPTIONS)
def count_block(symbols, symbol):
    found = np.uint8(0)
    for t in range(len(symbols)):
        found = np.uint8(found + np.uint8(symbols[t] == symbol))
    return np.int64(found)


@cache
def truncate_at_eos_kernel() -> Any:
    """Takes jobs [..., stride of the rows of strings, strings (int64), symbols, is_string]."""

    @kernel
    def truncate_at_eos(job):
        tasks, rows, rows_of_task, length, stride, strings, symbols, is_string = fields(job, 9)
        task = claim(job)
        while task < tasks:
            for i in range(task * rows_of_task, min((task + 1) * rows_of_task, rows)):
                # Each row is read to its end: stopping where its word ends would wait for memory.
                end = length
                for at in range(0, length, BLOCK):
                    n = min(BLOCK, length - at)
                    block = row(symbols, i * length + at, n, np.int8)
                    here = copy_block(row(strings, i * stride + at, n, np.int64), block)
                    end = min(end, at + here if here < BLOCK else length)
                word = row(symbols, i * length, length, np.int8)
                keeps = end == length or word[end] == EOS
                pad_from(np.int32(end if keeps else 0), word)
                row(is_string, i, 1, np.bool_)[0] = keeps
            task = claim(job)

    return truncate_at_eos


@njit(**OPTIONS)
def widen(symbols, tokens):
    for t in range(len(symbols)):
        tokens[t] = symbols[t]


@cache
def frame_kernel() -> Any:
    """Takes jobs [..., symbols, rows (int64)]."""

    @kernel
    def frame(job):
        tasks, rows, rows_of_task, length, symbols, framed = fields(job, 7)
        task = claim(job)
        while task < tasks:
            for i in range(task * rows_of_task, min((task + 1) * rows_of_task, rows)):
                word = row(symbols, i * length, length, np.int8)
                tokens = row(framed, i * (length + 2), length + 2, np.int64)
                tokens[0], tokens[length + 1] = SOS, PAD
                widen(word, row(framed, i * (length + 2) + 1, length, np.int64))
                end = 0
                while end < length and word[end] != PAD:
                    end += 1
                tokens[end + 1] = EOS
            task = claim(job)

    return frame


@cache
def count_kernel() -> Any:
    """Takes jobs [..., symbol, symbols, counts]."""

    @kernel
    def count(job):
        tasks, rows, rows_of_task, length, symbol, symbols, counts = fields(job, 8)
        task = claim(job)
        while task < tasks:
            for i in range(task * rows_of_task, min((task + 1) * rows_of_task, rows)):
                found = 0
                for at in range(0, length, BLOCK):
                    found += count_block(row(symbols, i * length + at, min(BLOCK, length - at), np.int8), symbol)
                row(counts, i, 1, np.int32)[0] = found
            task = claim(job)

    return count


@cache
def first_kernel() -> Any:
    """Takes jobs [..., symbol, symbols, positions]."""

    @kernel
    def first(job):
        tasks, rows, rows_of_task, length, symbol, symbols, positions = fields(job, 8)
        task = claim(job)
        while task < tasks:
            for i in range(task * rows_of_task, min((task + 1) * rows_of_task, rows)):
                at, here = 0, BLOCK
                while at < length and here == BLOCK:
                    n = min(BLOCK, length - at)
                    here = first_in_block(row(symbols, i * length + at, n, np.int8), symbol)
                    at += min(here, n)
                row(positions, i, 1, np.int32)[0] = at
            task = claim(job)

    return first


@cache
def last_kernel() -> Any:
    """Takes jobs [..., symbol, symbols, positions]."""

    @kernel
    def last(job):
        tasks, rows, rows_of_task, length, symbol, symbols, positions = fields(job, 8)
        task = claim(job)
        while task < tasks:
            for i in range(task * rows_of_task, min((task + 1) * rows_of_task, rows)):
                at, here = length, -1
                while at > 0 and here < 0:
                    n = min(BLOCK, at)
                    at -= n
                    here = last_in_block(row(symbols, i * length + at, n, np.int8), symbol)
                row(positions, i, 1, np.int32)[0] = at + here
            task = claim(job)

    return last


@cache
def matched_kernel() -> Any:
    """Takes jobs [..., opening bracket, symbols, verdicts, numbers]."""

    @kernel
    def matched(job):
        tasks, rows, rows_of_task, length, opening, symbols, verdicts, numbers = fields(job, 9)
        task = claim(job)
        while task < tasks:
            for i in range(task * rows_of_task, min((task + 1) * rows_of_task, rows)):
                word = row(symbols, i * length, length, np.int8)
                depth = lowest = 0
                for t in range(length):
                    symbol = word[t]
                    if symbol == PAD:
                        break
                    depth += (symbol == opening) - (symbol == opening + 1)
                    lowest = min(lowest, depth)
                row(verdicts, i, 1, np.bool_)[0] = lowest >= 0
                row(numbers, i, 1, np.int32)[0] = depth
            task = claim(job)

    return matched


@cache
def nested_kernel() -> Any:
    """Takes jobs [..., symbols, verdicts, numbers, stacks (tasks, length + 2)]."""

    @kernel
    def nested(job):
        tasks, rows, rows_of_task, length, symbols, verdicts, numbers, stacks = fields(job, 9)
        task = claim(job)
        while task < tasks:
            stack = row(stacks, task * (length + 2), length + 2, np.int8)
            stack[0] = PAD  # below the first bracket
            for i in range(task * rows_of_task, min((task + 1) * rows_of_task, rows)):
                word = row(symbols, i * length, length, np.int8)
                top, proper, t = 0, True, 0
                # A branch on the symbol would be mispredicted half the time. So every symbol is written above the top
                # of the stack, where it counts only if it opens.
                while t < length and word[t] != PAD:
                    symbol = word[t]
                    opens = (symbol & 1) == (FIRST_SYMBOL & 1)
                    proper &= opens | (stack[top] == symbol - 1)
                    stack[top + 1] = symbol
                    top = max(top + 2 * opens - 1, 0)
                    t += 1
                row(verdicts, i, 1, np.bool_)[0] = proper
                row(numbers, i, 1, np.int32)[0] = top
            task = claim(job)

    return nested
