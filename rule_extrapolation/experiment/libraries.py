"""Settings of torch and Lightning for the whole process, made before a run is assembled."""

from __future__ import annotations

import logging
import warnings

import torch


def set_up_libraries() -> None:
    """Silence what Lightning says of things that are as they should be, and keep torch from filling new memory."""
    # Where trainer.deterministic is set, torch would fill all new memory with nan: a tenth of a small model's step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance\\(treespec, LeafSpec\\).* is deprecated",  # Lightning's own use of torch
        "The number of training batches .* is smaller than the logging interval",  # metrics are logged by steps
        "Checkpoint directory .* exists and is not empty",  # the best checkpoint of the run that is resumed
        "Experiment logs directory .* exists and is not empty",  # Hydra's files; an earlier run is rejected elsewhere
    ):
        warnings.filterwarnings("ignore", message)
