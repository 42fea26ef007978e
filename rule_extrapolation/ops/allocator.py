"""What the C library does with memory that has been freed."""

from __future__ import annotations

import ctypes
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 1 << 30
LARGEST = 1 << 25
"""Bytes; glibc takes no larger one."""


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to a gibibyte of freed memory for this process, in pieces of up to 32 MiB.

    It would give pieces of that size back to the system, which clears each page again when it is next asked for: a
    model that makes a new state for every token spends a third of its time on that.

    Returns:
        Whether it does: other C libraries have other ways.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not there; no handle of the process itself on Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, KEPT))
