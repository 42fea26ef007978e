from __future__ import annotations

from functools import cached_property
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping


class EarlyStopping(LightningEarlyStopping):
    """Lightning's EarlyStopping, which also stops a resumed run that it had stopped before."""

    stopped = False

    @cached_property
    def state_key(self) -> str:
        return super().state_key  # Lightning asks for it at each hook, and would format it each time

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self.stopped = self.stopped or trainer.should_stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.stopped

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        # A run that is resumed with another patience is to continue.
        self.stopped = state_dict.get("stopped", False) and patience == self.patience
        self.patience = patience
