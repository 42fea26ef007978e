from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn


class BestMetrics(Callback):
    """The figures of a run under both protocols, kept through interruptions.

    ``over_training`` holds each loss's minimum and each accuracy's maximum over all validations, as the paper reports
    them; ``at_best`` holds every figure of the one validation with the least Val/objective, with its step and epoch.
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
        """Take up the figures of the validation that has just ended."""
        # Lightning keeps what was once logged: an accuracy over finished completions, though now none has finished.
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
