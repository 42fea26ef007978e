from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn


class BestMetrics(Callback):
    """Collect a run's figures under both protocols, across interruptions.

    ``over_training`` holds the minimum of each loss and the maximum of each accuracy over all validations, as the paper
    reports them. ``at_best`` holds all figures of the validation with the lowest Val/objective, its step and its epoch.
    """

    def __init__(self) -> None:
        self.over_training: dict[str, float] = {}
        self.at_best: dict[str, float] = {}
        self.diverged = False
        """Whether the last validation's objective was not finite."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.record(trainer, pl_module)

    def record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the figures of the validation that has just ended."""
        # Lightning keeps the figures of earlier validations too, such as an accuracy over finished completions when no
        # completion has finished this time. Accuracies are therefore read from the module.
        logged = {name: value for name, value in trainer.callback_metrics.items() if not name.endswith("_accuracy")}
        figures = {name: value.item() for name, value in logged.items() if name.startswith("Val/")}
        figures |= pl_module.prompt_accuracies
        self.diverged = not math.isfinite(figures["Val/objective"])
        if self.diverged:
            return
        for name, value in figures.items():
            best = max if name.endswith("accuracy") else min
            self.over_training[name] = best(value, self.over_training.get(name, value))
        if not self.at_best or figures["Val/objective"] < self.at_best["Val/objective"]:
            self.at_best = {"step": trainer.global_step, "epoch": trainer.current_epoch, **figures}

    def results(self) -> dict[str, dict[str, float]]:
        return {"at_best_validation": self.at_best.copy(), "over_training": self.over_training.copy()}

    def state_dict(self) -> dict[str, Any]:
        return {"over_training": self.over_training, "at_best": self.at_best, "diverged": self.diverged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.over_training, self.at_best = state_dict["over_training"], state_dict["at_best"]
        self.diverged = state_dict.get("diverged", False)
