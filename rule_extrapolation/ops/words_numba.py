"""The compiled kernels of ``words``. Jobs are [0, tasks, words, words of a task, width, ..., addresses]."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit

from rule_extrapolation.core.tokens import FIRST_SYMBOL, PAD
from rule_extrapolation.ops.numba_tools import OPTIONS, claim, fields, kernel, row
from rule_extrapolation.ops.splitmix import FIRST_FACTOR, SECOND_FACTOR, STEP

# In one type with everything they meet: numba would compute with int64 and uint64 in float64.
STEP, FIRST_FACTOR, SECOND_FACTOR = np.uint64(STEP), np.uint64(FIRST_FACTOR), np.uint64(SECOND_FACTOR)
S27, S30, S31, S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)


@njit(**OPTIONS)
def below(choices, key, position):
    """One of 0..choices-1, evenly."""
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
def runs() -> Any:
    """Of jobs [..., runs of a word, their letters, where they end (words, runs), words]."""

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
def shuffled() -> Any:
    """Of jobs [..., first letter, second letter, how many of the first, lengths, keys, words]."""

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
def brackets() -> Any:
    """Of jobs [..., kinds, nest, length of a task's memory, targets, keys, words, memory]."""

    @kernel
    def brackets(job):
        tasks, num, words_of_task, width, kinds, nest, size, targets, keys, words, memory = fields(job, 12)
        task = claim(job)
        while task < tasks:
            # Either stack[1..total], the kinds that are open, or how many are open of each kind.
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
                    # No branch for what was drawn, which would be mispredicted half the time.
                    if nest:
                        kind = np.int64(stack[total]) if closes else choice
                        stack[total + 1] = kind  # above the top, and so no one's, if it closes
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
