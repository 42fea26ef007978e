from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from rule_extrapolation.training.loggers.metrics_file import MetricsFile

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Write ``last.ckpt`` at each validation, at the end of training, and on Ctrl-C after the current batch.

    The checkpoint holds the number of rows that metrics.csv had, since a run that is resumed from it logs the later
    rows again. On Ctrl-C, Lightning does not log the current step, and a validation that is running or due is omitted.
    A second Ctrl-C stops immediately and leaves the file as it was. With several processes, all of them stop after the
    same batch, also on SIGTERM.
    """

    def __init__(self, dirpath: str):
        self.path = Path(dirpath) / "last.ckpt"
        self.end = self.path.with_name("end.ckpt")
        self.interrupted = False
        self.rows = 0
        self.previous_handler: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.path = trainer.strategy.broadcast(self.path)
        self.end = self.path.with_name("end.ckpt")

    def save(self, trainer: Trainer, path: Path | None = None) -> None:
        for logger in trainer.loggers:
            logger.save()
            if isinstance(logger, MetricsFile):
                self.rows = logger.experiment.rows
        trainer.save_checkpoint(path or self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self.previous_handler = signal.signal(signal.SIGINT, self.on_sigint)

    def on_sigint(self, signum: int, frame: Any) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        rank_zero_only(log.warning)("\nStopping after this batch; press Ctrl-C again to stop immediately.")

    def stops(self, trainer: Trainer) -> bool:
        if trainer.world_size > 1:
            self.interrupted = trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
        return self.interrupted

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step = trainer.estimated_stepping_batches
        if trainer.world_size > 1:
            # Lightning's handler would wait for the other processes immediately, while they wait for this one.
            signal.signal(signal.SIGTERM, self.on_sigterm)

    def on_sigterm(self, signum: int, frame: Any) -> None:
        self.interrupted = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.stops(trainer):
            self.save(trainer)
            raise KeyboardInterrupt
        # Not in on_train_end, where Lightning has already counted an epoch that max_steps truncates as complete. The
        # file has a name of its own because a validation may follow: a run that is killed during it must resume from
        # the checkpoint before.
        if trainer.global_step == self.last_step:
            self.save(trainer, self.end)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.stops(trainer):
            self.save(trainer)
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            stops = self.stops(trainer)
            self.save(trainer)
            if trainer.is_global_zero:
                self.end.unlink(missing_ok=True)
            if stops:
                raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.end.is_file():
            os.replace(self.end, self.path)
        trainer.strategy.barrier()  # the other processes read the file too

    def teardown(self, *_: Any, **__: Any) -> None:
        if self.previous_handler is not None:
            signal.signal(signal.SIGINT, self.previous_handler)
            self.previous_handler = None

    on_exception = teardown
