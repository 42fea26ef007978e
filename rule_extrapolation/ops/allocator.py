"""How the C library treats freed memory."""

from __future__ import annotations

import ctypes
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 1 << 30
"""Bytes of freed memory that the process keeps."""
LARGEST = 1 << 25
"""Bytes of the largest block to keep: the maximum that glibc accepts."""


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to 1 GiB of freed memory for this process, in blocks of up to 32 MiB.

    By default it returns large blocks to the system, which must clear their pages when they are next allocated. That
    takes up to a third of the time of a model that allocates a state for every token or activations for every step.

    Returns:
        Whether it succeeded, which requires glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; on Windows, no handle of the process itself
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, KEPT))
