from __future__ import annotations

import math
import os
import signal
import sys
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from rule_extrapolation.sweep import is_worker
from rule_extrapolation.training.metrics_file import MetricsFile


class History(Callback):
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


class EarlyStopping(LightningEarlyStopping):
    """Lightning's, which also stops a run that goes on from where it has been stopped before."""

    stopped = False

    @cached_property
    def state_key(self) -> str:
        return super().state_key  # Lightning asks for it at each hook, and would write it anew

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
        # With another patience the run is to go on.
        self.stopped = state_dict.get("stopped", False) and patience == self.patience
        self.patience = patience


class BestCheckpoint(ModelCheckpoint):
    """ModelCheckpoint whose best file comes along when a run goes on in another folder.

    Whoever resumes a run copies the file; the paths in a checkpoint are those of the folder it was written in.
    """

    @cached_property
    def state_key(self) -> str:
        return super().state_key  # Lightning asks for it at each hook, and would write it anew

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        path = Path(self.dirpath, f"{self.filename}.ckpt")
        if path.is_file():
            paths = dict.fromkeys(("best_model_path", "kth_best_model_path"), str(path))
            best = {str(path): state_dict["best_model_score"]}
            super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``: written at each validation, at the end, and on Ctrl-C once the batch under way is complete.

    With it goes how many rows metrics.csv had: what comes behind them is logged again by a run that goes on from it.
    Lightning logs and validates behind the hooks that stop it: the log of that one step, and a validation under way or
    due, are left out. A second Ctrl-C stops at once and leaves the file as it was. Of several processes, all stop where
    the first one that it reaches does, and so they do on SIGTERM.
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
        rank_zero_only(print)("\nStopping after this batch; Ctrl-C again stops at once.", flush=True)

    def stops(self, trainer: Trainer) -> bool:
        if trainer.world_size > 1:
            self.interrupted = trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
        return self.interrupted

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step = trainer.estimated_stepping_batches
        if trainer.world_size > 1:
            # Lightning's handler would wait for the other processes there and then, and they for this one.
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
        # Not on_train_end: by then Lightning has counted an epoch that max_steps cut short as complete. But under a
        # name of its own: a run that is killed in the validation that may be due has to go on from the one before.
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
        trainer.strategy.barrier()  # the others read it too

    def teardown(self, *_: Any, **__: Any) -> None:
        if self.previous_handler is not None:
            signal.signal(signal.SIGINT, self.previous_handler)
            self.previous_handler = None

    on_exception = teardown


class TrainingBar(TQDMProgressBar):
    """Lightning's progress bar, one for the whole training: an epoch may be a single step.

    Where the output is no terminal, a line at each validation, with the run's name where others run beside it.
    """

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
        """The bar goes on."""

    def on_train_epoch_end(self, *_: Any) -> None:
        """The bar goes on."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        bar = self.train_progress_bar
        if self._should_update(trainer.global_step, bar.total):
            bar.update(trainer.global_step - bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.is_enabled and trainer.state.fn == TrainerFn.FITTING and not sys.stdout.isatty():
            figures = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            whose = f"{Path(HydraConfig.get().runtime.output_dir).name}  " if is_worker() else ""
            print(f"{whose}step {trainer.global_step}/{self.train_progress_bar.total}  {figures}", flush=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
        shown = {"Val/loss": "Val/loss", "Val/perplexity": "perplexity"}
        shown |= {"Val/ID/rule_1_accuracy": "ID R1", "Val/ID/rule_2_accuracy": "ID R2"}
        figures = {name: trainer.callback_metrics.get(key) for key, name in shown.items()}
        return {name: f"{value.item():.3f}" for name, value in figures.items() if value is not None}
