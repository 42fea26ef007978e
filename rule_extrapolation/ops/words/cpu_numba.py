"""Compiled CPU kernels of random words. Arguments and results are those of the functions in ``words``.

Jobs are [0, tasks, words, words of a task, width, ..., addresses].
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from rule_extrapolation.core.tokens import FIRST_SYMBOL, PAD
from rule_extrapolation.ops._kernels.launcher import launch
from rule_extrapolation.ops._kernels.numba_tools import OPTIONS, claim, fields, kernel, row
from rule_extrapolation.ops.words import reference

WORDS = 64
"""Words of a task."""

# All uint64: numba computes in float64 where int64 and uint64 meet.
STEP = np.uint64(reference.STEP)
FIRST_FACTOR, SECOND_FACTOR = np.uint64(reference.FIRST_FACTOR), np.uint64(reference.SECOND_FACTOR)
S27, S30, S31, S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)


def runs(letters: list[int], counts: Tensor, width: int) -> Tensor:
    words = torch.empty(len(counts), width, dtype=torch.int8)
    run(runs_kernel(), words, (len(letters),), (torch.tensor(letters), counts.cumsum(1).contiguous(), words))
    return words


def shuffled(letters: tuple[int, int], num_first: Tensor, lengths: Tensor, width: int, keys: Tensor) -> Tensor:
    words = torch.empty(len(keys), width, dtype=torch.int8)
    inputs = (tensor.contiguous() for tensor in (num_first.long(), lengths.long(), keys))
    run(shuffled_kernel(), words, letters, (*inputs, words))
    return words


def brackets(targets: Tensor, kinds: int, width: int, nest: bool, keys: Tensor) -> Tensor:
    words = torch.empty(len(targets), width, dtype=torch.int8)
    memory = torch.empty(num_tasks(len(targets)), max(width, kinds) + 1, dtype=torch.int32)
    inputs = targets.long().contiguous(), keys.contiguous()
    run(brackets_kernel(), words, (kinds, nest, memory.shape[1]), (*inputs, words, memory))
    return words


def num_tasks(num: int) -> int:
    return -(-num // WORDS)


def run(kernel: Any, words: Tensor, sizes: tuple[int, ...], tensors: tuple[Tensor, ...]) -> None:
    num, width = words.shape
    launch(kernel, num_tasks(num), (num, WORDS, width, *sizes), tensors, words.numel())


@njit(**OPTIONS)
def below(choices, key, position):
    """A uniformly random integer from 0 to choices - 1."""
    x = np.uint64(key) + np.uint64(position + 1) * STEP
    x = (x ^ (x >> S30)) * FIRST_FACTOR
    x = (x ^ (x >> S27)) * SECOND_FACTOR
    x = (x ^ (x >> S31)) >> S32
    return np.int64((x * np.uint64(choices)) >> S32)


@njit(**OPTIONS)
def fill(symbols, symbol):
    for t in range(len(symbols)):
        symbols[t] = symbol


@cache
def runs_kernel() -> Any:
    """Takes jobs [..., runs of a word, letters, ends of the runs (words, runs), words]."""

    @kernel
    def runs(job):
        tasks, num, words_of_task, width, num_runs, letters, ends, words = fields(job, 9)
        letter = row(letters, 0, num_runs, np.int64)
        task = claim(job)
        while task < tasks:
            for i in range(task * words_of_task, min((task + 1) * words_of_task, num)):
                start = 0
                for k in range(num_runs):
                    end = row(ends, i * num_runs + k, 1, np.int64)[0]
                    fill(row(words, i * width + start, end - start, np.int8), np.int8(letter[k]))
                    start = end
                fill(row(words, i * width + start, width - start, np.int8), np.int8(PAD))
            task = claim(job)

    return runs


@cache
def shuffled_kernel() -> Any:
    """Takes jobs [..., first letter, second letter, num_first, lengths, keys, words]."""

    @kernel
    def shuffled(job):
        tasks, num, words_of_task, width, first, second, num_first, lengths, keys, words = fields(job, 11)
        task = claim(job)
        while task < tasks:
            for i in range(task * words_of_task, min((task + 1) * words_of_task, num)):
                first_left, length = row(num_first, i, 1, np.int64)[0], row(lengths, i, 1, np.int64)[0]
                key = row(keys, i, 1, np.int64)[0]
                word = row(words, i * width, width, np.int8)
                for t in range(length):
                    takes_first = below(length - t, key, t) < first_left
                    first_left -= takes_first
                    word[t] = first if takes_first else second
                fill(row(words, i * width + length, width - length, np.int8), np.int8(PAD))
            task = claim(job)

    return shuffled


@cache
def brackets_kernel() -> Any:
    """Takes jobs [..., kinds, nest, size of a task's memory, targets, keys, words, memory]."""

    @kernel
    def brackets(job):
        tasks, num, words_of_task, width, kinds, nest, size, targets, keys, words, memory = fields(job, 12)
        task = claim(job)
        while task < tasks:
            # The task's memory: if brackets nest, the kinds of the open ones in stack[1..total], else how many are open
            # of each kind.
            stack = open_ = row(memory, task * size, size, np.int32)
            for i in range(task * words_of_task, min((task + 1) * words_of_task, num)):
                target, key = row(targets, i, 1, np.int64)[0], row(keys, i, 1, np.int64)[0]
                word = row(words, i * width, width, np.int8)
                open_[:kinds] = 0
                total = kinds_open = t = 0
                while t < target and not (nest and t and not total):
                    openings = kinds if t + total < target else 0
                    closings = min(total, 1) if nest else kinds_open
                    choice = below(openings + closings, key, t)
                    closes = choice >= openings
                    # A branch on the choice would be mispredicted half the time.
                    if nest:
                        kind = np.int64(stack[total]) if closes else choice
                        stack[total + 1] = kind  # if it closes, above the top, where it does not count
                    else:
                        kind, rank = choice, openings - 1
                        for k in range(kinds):
                            rank += open_[k] > 0
                            kind = k if closes & (open_[k] > 0) & (rank == choice) else kind
                        kinds_open -= open_[kind] > 0
                        open_[kind] += 1 - 2 * closes
                        kinds_open += open_[kind] > 0
                    total += 1 - 2 * closes
                    word[t] = FIRST_SYMBOL + 2 * kind + closes
                    t += 1
                fill(row(words, i * width + t, width - t, np.int8), np.int8(PAD))
            task = claim(job)

    return brackets
