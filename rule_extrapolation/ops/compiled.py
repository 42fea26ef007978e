"""Runs compiled CPU kernels on as many threads as torch does. Needs numba, which it imports when first asked for."""

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
"""float32 numbers."""

NUMPY_TYPES = {torch.float32: np.float32, torch.float64: np.float64}
"""The dtypes that there are kernels for."""

GRAIN = 32768
"""Numbers that are worth a thread of their own: torch's grain size."""

is_forked = False


def note_fork() -> None:
    global is_forked
    is_forked = True


if hasattr(os, "register_at_fork"):  # not on Windows, where there are no forks
    os.register_at_fork(after_in_child=note_fork)


@cache
def available() -> bool:
    """Whether kernels can be compiled here."""
    return find_spec("numba") is not None


def handles(*tensors: Tensor) -> bool:
    """Whether a kernel can take these: all on the CPU, and numba is there."""
    return all(tensor.device.type == "cpu" for tensor in tensors) and available()


def launch(kernel: Any, tasks: int, sizes: Iterable[int], tensors: Iterable[Tensor], work: int) -> None:
    """Run all tasks of a kernel: see ``numba_tools`` for what it is given.

    Args:
        tasks, sizes: what the kernel's job begins with, behind the counter.
        tensors: contiguous, on the CPU; the job ends with their addresses.
        work: about how many numbers there are to compute.
    """
    tensors = list(tensors)
    if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors):
        raise TypeError("compiled kernels take tensors with memory of their own, no FakeTensors or other subclasses")
    job = np.array([0, tasks, *sizes, *(tensor.data_ptr() for tensor in tensors)], np.int64)
    threads = min(threads_for(work), tasks)
    if threads > 1 and (team := torch_threads()):
        team(kernel.address, job.ctypes.data, threads, 0)
        return
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel.address)  # lets other Python threads run meanwhile
    others = [Thread(target=run, args=(job.ctypes.data,)) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    run(job.ctypes.data)
    for thread in others:
        thread.join()


def width_of_task(batch: int, channels: int) -> int:
    """All channels of a row, which are beside each other in memory, unless there are more threads than rows."""
    parts = math.ceil(torch.get_num_threads() / max(batch, 1))
    return max(1, math.ceil(channels / parts / CACHE_LINE) * CACHE_LINE)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where a tensor has it, else float32: what there are kernels for."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def threads_for(work: int) -> int:
    """One in a forked process, such as a DataLoader's worker: OpenMP's threads do not survive a fork."""
    return 1 if is_forked else min(torch.get_num_threads(), max(1, work // GRAIN))


def fold_into_batch(operator: Any) -> None:
    """Let torch.vmap through an operator of tensors whose first dimension is the batch: it becomes a longer batch."""

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
    """The function by which GNU OpenMP, which torch has loaded, runs a C function on a team of threads.

    A team of our own would compete for the cores with torch's, which spins for a while behind each of torch's
    operations. None where torch has another OpenMP.
    """
    try:
        team = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # not there; no handle of the process itself on Windows
        return None
    team.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    team.restype = None
    return team
