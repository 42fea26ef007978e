"""Runs of a sweep whose files cannot be read any more, since the disk was full or the machine went down."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.experiment.processes import InUse, lock
from rule_extrapolation.reporting import sweeps
from rule_extrapolation.runs.identity import identity
from rule_extrapolation.runs.run_folder import BROKEN, DONE, read_config, read_results


def set_aside_if_broken(cfg: DictConfig, folder: Path) -> None:
    """Rename a run's folder if a file in it cannot be read, so that the run can be made anew. Nothing is lost.

    A last checkpoint that cannot be read is no reason: without a best one either, nothing else would be kept.
    """
    reason = folder.is_dir() and broken(cfg, folder)
    if not reason:
        return
    try:
        with lock(folder):
            reason = broken(cfg, folder)  # unless another process has mended it
            if reason:
                aside = free_name(folder)
                folder.rename(aside)
                sweeps.print_set_aside(folder, reason, aside)
    except InUse:
        pass


def broken(cfg: DictConfig, folder: Path) -> str | None:
    """Which file of a run cannot be read, or None."""
    try:
        results = read_results(folder)
    except ConfigError:
        return "results.json cannot be read"
    if not is_whole_config(cfg, folder):
        return "config.yaml cannot be read"
    if (results or {}).get("status") not in DONE and not best_loads(folder):
        return "checkpoints/best.ckpt cannot be read"
    return None


def is_whole_config(cfg: DictConfig, folder: Path) -> bool:
    """Whether config.yaml, if there is one, is a run's and not only the beginning of this run's."""
    path = folder / "config.yaml"
    if not path.is_file():
        return True
    try:
        identity(read_config(folder))
        lines = path.read_text().split("\n")
    except Exception:
        return False
    settings = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    whole = OmegaConf.merge(settings, {"run_dir": str(folder)})
    expected = OmegaConf.to_yaml(whole, resolve=True).split("\n")
    return len(lines) >= len(expected) or lines[:-1] != expected[: len(lines) - 1]


def best_loads(folder: Path) -> bool:
    """Whether the best checkpoint can be read, if there is one and training would go on from the last one."""
    from rule_extrapolation.runs.checkpoints import best_checkpoint, last_checkpoint, loads

    best, last = best_checkpoint(folder), last_checkpoint(folder)
    return not best.is_file() or loads(best) or not loads(last)


def free_name(folder: Path) -> Path:
    """The first name to set a folder aside under that is not taken."""
    names = (folder.with_name(f"{folder.name}{BROKEN}{number}") for number in count(1))
    return next(path for path in names if not path.exists())
