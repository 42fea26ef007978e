"""Runs compiled CPU kernels on tensors, in as many threads as torch uses. Importing this does not import numba."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

CACHE_LINE = 16
"""In float32 numbers."""

NUMPY_TYPES = {torch.float32: np.float32, torch.float64: np.float64}
"""The floating-point dtypes that kernels are compiled for."""

NUMBERS_PER_THREAD = 32768
"""The least work that is worth another thread; equal to torch's grain size."""

WORTH_COMPILING = 2**18
"""The least number of tokens for which the integer kernels (strings, words) are used. Below it, plain torch takes some
milliseconds, whereas a kernel takes half a second to compile."""

is_forked = False


def note_fork() -> None:
    global is_forked
    is_forked = True


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=note_fork)


@cache
def has_numba() -> bool:
    return find_spec("numba") is not None


def handles(*tensors: Tensor) -> bool:
    """Whether kernels can run on these tensors: all are on the CPU, and numba is installed."""
    return all(tensor.device.type == "cpu" for tensor in tensors) and has_numba()


def is_worth_compiling(num_tokens: int) -> bool:
    """Whether an integer kernel should be used for so many tokens on a CPU."""
    return num_tokens >= WORTH_COMPILING and has_numba()


def launch(kernel: Any, tasks: int, sizes: Iterable[int], tensors: Iterable[Tensor], work: int) -> None:
    """Run all tasks of a kernel. ``numba_tools`` describes the job that the kernel receives.

    Args:
        kernel: made by ``numba_tools.kernel``.
        tasks: how many tasks there are.
        sizes: the integers of the job that follow the number of tasks.
        tensors: contiguous, on the CPU; their addresses end the job.
        work: roughly how many numbers there are to compute, which determines the number of threads.

    Raises:
        TypeError: a tensor without memory of its own.
    """
    tensors = list(tensors)
    if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors):
        raise TypeError("compiled kernels take plain tensors, not FakeTensor or another subclass")
    job = np.array([0, tasks, *sizes, *(tensor.data_ptr() for tensor in tensors)], np.int64)
    threads = min(threads_for(work), tasks)
    if threads > 1 and (team := torch_threads()):
        team(kernel.address, job.ctypes.data, threads, 0)
        return
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel.address)  # releases the GIL
    others = [Thread(target=run, args=(job.ctypes.data,)) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    run(job.ctypes.data)
    for thread in others:
        thread.join()


def width_of_task(batch: int, channels: int) -> int:
    """How many channels of a batch row make a task: all, which are contiguous, unless there are more threads than
    rows."""
    parts = math.ceil(torch.get_num_threads() / max(batch, 1))
    return max(1, math.ceil(channels / parts / CACHE_LINE) * CACHE_LINE)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype that kernels compute in: float64 if any tensor has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def threads_for(work: int) -> int:
    """How many threads to use. One in a forked process, such as a DataLoader worker, since OpenMP's threads do not
    survive a fork."""
    return 1 if is_forked else min(torch.get_num_threads(), max(1, work // NUMBERS_PER_THREAD))


def fold_into_batch(operator: Any) -> None:
    """Make an operator work under torch.vmap: the mapped dimension is folded into the first dimension, the batch."""

    @operator.register_vmap
    def folded(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        size = info.batch_size

        def fold(tensor: Tensor, dim: int | None) -> Tensor:
            tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            return tensor.flatten(0, 1)

        pairs = zip(arguments, in_dims)
        arguments = [fold(x, dim) if isinstance(x, Tensor) else x for x, dim in pairs]
        return operator(*arguments).unflatten(0, (size, -1)), 0


@cache
def torch_threads() -> Any | None:
    """GOMP_parallel, by which GNU OpenMP runs a C function on torch's own threads; None if torch uses another OpenMP.

    Threads of our own would compete for the cores with torch's, which keep spinning for a while after each operation.
    """
    try:
        team = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # no such function; on Windows, no handle of the process itself
        return None
    team.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    team.restype = None
    return team
