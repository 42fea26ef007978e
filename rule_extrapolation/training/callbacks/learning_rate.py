from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from rule_extrapolation.training.language_modeling import logs_this_step


class LearningRate(Callback):
    """Log the learning rate of a step as ``lr-<optimizer>``, once a step and for all groups of weights together.

    Lightning's LearningRateMonitor would log it with each batch, and under another name if there are several groups.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0 and logs_this_step(trainer):
            rates = {f"lr-{type(each).__name__}": each.param_groups[0]["lr"] for each in trainer.optimizers}
            for logger in trainer.loggers:
                logger.log_metrics(rates, trainer.global_step)
