"""The format of a run folder's checkpoints, and how they are read: with ``weights_only``, so that none can run code."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from rule_extrapolation.core.files import replacing

VALIDATION = "validation"
"""The key in the state of Lightning's epoch loop that tells at which point of a validation a checkpoint was written."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint writer, made atomic.

    Lightning writes to the system's folder for temporary files and moves the file, which is a copy between disks.

    Raises:
        WriteFailed: the system cannot write it; an earlier checkpoint of that name stays.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        # Written to memory first: where the disk is full, torch.save raises an error that does not say so.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with replacing(Path(path)) as temporary:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content.getbuffer())


def best_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "best.ckpt"


def last_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def tested_checkpoint(folder: Path) -> Path | None:
    """A run's best checkpoint. Training that ends before its first validation has only a last one; None for neither."""
    return next(filter(Path.is_file, (best_checkpoint(folder), last_checkpoint(folder))), None)


def completed_progress(checkpoint: dict[str, Any]) -> dict[str, int]:
    """The steps and the complete epochs that a checkpoint was written after."""
    epochs = checkpoint["epoch"] + checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
    return {"max_steps": checkpoint["global_step"], "max_epochs": epochs}


def lacks_validation(checkpoint: dict[str, Any]) -> bool:
    """Whether a validation was due when a checkpoint was written, whose figures it therefore lacks."""
    return checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"].get(VALIDATION) == "due"


def logged_rows(path: Path) -> int:
    """How many rows metrics.csv had when a checkpoint was written."""
    return next(state["rows"] for state in load(path, "meta")["callbacks"].values() if "rows" in state)


def load(path: Path, device: str) -> dict[str, Any]:
    with warnings.catch_warnings():  # a pickle of another program is an error, which torch precedes by a warning
        warnings.filterwarnings("ignore", "Detected pickle protocol|'torch.load' received a zip file")
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    if missing := {"state_dict", "global_step", "epoch", "loops"} - checkpoint.keys():
        raise KeyError(*missing)
    return checkpoint


def loads(path: Path) -> bool:
    """Whether there is a checkpoint that can be read."""
    try:
        load(path, "meta")
    except Exception:
        return False
    return True


def shapes(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}
