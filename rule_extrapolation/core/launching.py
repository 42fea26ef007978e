"""How many threads a run may keep busy: where several run side by side, each has its share."""

from __future__ import annotations

import os
import sys

from omegaconf import DictConfig, OmegaConf


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(launcher: DictConfig) -> int | None:
    """What one of Hydra's launchers leaves to each of the runs that it has side by side; None: it does not say."""
    if jobs := launcher.get("n_jobs"):  # joblib's: -1 is one for each core, -2 one less
        return max(1, cores() // (jobs if jobs > 0 else max(1, cores() + 1 + jobs)))
    return launcher.get("cpus_per_task") or OmegaConf.select(launcher, "ray.remote.num_cpus")


def limit_threads(threads: int | None) -> None:
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when it is imported; so do processes of our own
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
