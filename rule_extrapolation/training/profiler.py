from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch.profilers import PassThroughProfiler

NOTHING = nullcontext()


class NoProfiler(PassThroughProfiler):
    """Measures nothing, like Lightning's PassThroughProfiler, but without a new context manager for each hook of each
    callback: some seventy a step."""

    def profile(self, action_name: str) -> AbstractContextManager:
        return NOTHING
