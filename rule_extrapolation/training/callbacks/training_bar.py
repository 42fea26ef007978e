from __future__ import annotations

import logging
import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import TrainerFn

from rule_extrapolation.grammars.titles import title

log = logging.getLogger(__name__)


class TrainingBar(TQDMProgressBar):
    """Lightning's progress bar, but a single one for the whole training, since an epoch may be a single step.

    If the output is not a terminal, it reports a line at each validation instead.

    Args:
        refresh_rate: steps between two updates of the bar.
        run_name: stands in front of each line if other runs print too; the program passes it.
    """

    def __init__(self, refresh_rate: int = 1, run_name: str | None = None):
        super().__init__(refresh_rate)
        self.run_name = run_name

    def init_train_tqdm(self) -> Tqdm:
        return super().init_train_tqdm() if sys.stdout.isatty() else Tqdm(disable=True)

    def init_validation_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)

    def init_test_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start()
        bar = self.train_progress_bar
        bar.total, bar.initial = trainer.estimated_stepping_batches, trainer.global_step
        bar.set_description("Training")

    def on_train_epoch_start(self, *_: Any) -> None:
        """Keep the same bar."""

    def on_train_epoch_end(self, *_: Any) -> None:
        """Keep the same bar."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        bar = self.train_progress_bar
        if self._should_update(trainer.global_step, bar.total):
            bar.update(trainer.global_step - bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.is_enabled and trainer.state.fn == TrainerFn.FITTING and not sys.stdout.isatty():
            figures = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            prefix = f"{self.run_name}  " if self.run_name else ""
            log.info("%sstep %d/%d  %s", prefix, trainer.global_step, self.train_progress_bar.total, figures)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
        shown = {"Val/loss": "Val/loss", "Val/perplexity": "perplexity"}
        shown |= {f"Val/ID/{rule}_accuracy": f"ID {title(rule)}" for rule in pl_module.task.rules}
        figures = {name: trainer.callback_metrics.get(key) for key, name in shown.items()}
        return {name: f"{value.item():.3f}" for name, value in figures.items() if value is not None}
