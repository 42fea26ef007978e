"""How many CPU threads a run may use. Runs that train side by side share the cores."""

from __future__ import annotations

import os
import sys

from omegaconf import DictConfig, OmegaConf


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(launcher: DictConfig) -> int | None:
    """Threads for each of the runs that a Hydra launcher starts side by side, or None if its settings do not say."""
    if jobs := launcher.get("n_jobs"):  # of joblib: -1 is one job per core, -2 one job fewer
        return max(1, cores() // (jobs if jobs > 0 else max(1, cores() + 1 + jobs)))
    return launcher.get("cpus_per_task") or OmegaConf.select(launcher, "ray.remote.num_cpus")


def limit_threads(threads: int | None) -> None:
    """Let torch use at most this many threads, also in child processes. None leaves it as it is."""
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it on import, also in child processes
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
