from __future__ import annotations

import logging
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
    """Write ``last.ckpt`` at each validation, at the end of training, and on Ctrl-C after the current step.

    The checkpoint holds the number of rows that metrics.csv had, since a run that is resumed from it logs the later
    rows again. On Ctrl-C, Lightning does not log the current step unless a validation is due, and a validation that is
    running or due is left to the run that goes on. A second Ctrl-C stops immediately and leaves the file as it was.
    SIGTERM does what Ctrl-C does. With several processes, all of them stop after the same batch.
    """

    def __init__(self, dirpath: str):
        self.path = Path(dirpath) / "last.ckpt"
        self.interrupted = False
        self.rows = 0
        self.previous_handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.path = trainer.strategy.broadcast(self.path)

    def save(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
            if isinstance(logger, MetricsFile):
                self.rows = logger.experiment.rows
        trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self.previous_handlers[signum] = signal.signal(signum, self.on_signal)

    def on_signal(self, signum: int, frame: Any) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        rank_zero_only(log.warning)("\nStopping after this batch; press Ctrl-C again to stop immediately.")

    def stops(self, trainer: Trainer) -> bool:
        if trainer.world_size > 1:
            self.interrupted = trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
        return self.interrupted

    def stop(self, trainer: Trainer) -> None:
        self.save(trainer)
        raise KeyboardInterrupt

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step = trainer.estimated_stepping_batches
        if is_main_thread():
            # Lightning has set a handler after on_fit_start. It stops without a checkpoint, and with several processes
            # it would wait for the others immediately, while they wait for this one.
            signal.signal(signal.SIGTERM, self.on_signal)

    # Not in on_train_end, where Lightning has already counted an epoch that max_steps truncates as complete.
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.validates_next:
            return  # and on_validation_start does the same, once the step is logged
        if not trainer.fit_loop.epoch_loop.completes_step:
            return  # a checkpoint holds no gradients
        if self.stops(trainer):
            self.stop(trainer)
        if trainer.global_step == self.last_step:
            self.save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.validating or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.stops(trainer):
            self.stop(trainer)
        if trainer.global_step == self.last_step:
            self.save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.stops(trainer):
            self.stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            stops = self.stops(trainer)
            self.save(trainer)
            if stops:
                raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()  # the other processes read the file too

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # in place of Lightning's, as above

    def teardown(self, *_: Any, **__: Any) -> None:
        for signum, handler in self.previous_handlers.items():
            signal.signal(signum, handler)
        self.previous_handlers = {}

    on_exception = teardown


def is_main_thread() -> bool:
    """Whether this is the only thread that may handle signals."""
    return threading.current_thread() is threading.main_thread()
