"""Lightning's loops of training, in which no validation is lost: one that was due and cut off is made up for when the
run is resumed, and the weights that training ends with are validated too.

Lightning has no public way to say either; ``tests/test_private_names.py`` names what is taken of it.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from rule_extrapolation.runs.checkpoints import VALIDATION


def use_loops(trainer: Trainer) -> None:
    """Replace a new Trainer's loops of training by those below."""
    fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    trainer.fit_loop = FitLoop(trainer, fit.min_epochs, fit.max_epochs)
    trainer.fit_loop.epoch_loop = EpochLoop(trainer, epoch.min_steps, epoch.max_steps)


class FitLoop(_FitLoop):
    """Lightning's loop over epochs, which is not done while a validation is due."""

    @property
    def done(self) -> bool:
        return not self.epoch_loop.due and super().done


class EpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the steps of an epoch.

    A checkpoint that is written during a validation tells whether its figures are in it (``done``) or not (``due``).
    """

    def __init__(self, trainer: Trainer, min_steps: int | None, max_steps: int):
        super().__init__(trainer, min_steps, max_steps)
        self.val_loop = ValidationLoop(
            trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False
        )
        self.loaded: str | None = None
        """At which point of a validation the checkpoint was written that this loop goes on from."""

    @property
    def due(self) -> bool:
        """Whether the checkpoint that this loop goes on from lacks a validation that was due."""
        return self.loaded == "due"

    @property
    def validates_next(self) -> bool:
        """Whether a validation follows the current step."""
        return self._should_check_val_fx(self.trainer.fit_loop._data_fetcher)

    def advance(self, data_fetcher: Any) -> None:
        super().advance(data_fetcher)
        if self.due:
            self._skip_next_val = False
            self.val_loop.restarting = False  # from its first batch, since figures of those before are not kept

    def on_iteration_done(self) -> None:
        super().on_iteration_done()
        self.loaded = None

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        # Also where the validation that the checkpoint was written in is not one by the settings that the run goes on
        # with.
        if self.loaded is not None or self.ends_training:
            return True
        trainer = self.trainer
        if trainer.accumulate_grad_batches > 1 and trainer.check_val_every_n_epoch is None:
            # Lightning would count batches.
            due = trainer.enable_validation and self.global_step % trainer.val_check_batch == 0
            return self.completes_step and due
        return super()._should_check_val_fx(data_fetcher)

    @property
    def completes_step(self) -> bool:
        """Whether the optimizer steps after the current batch, which does not only add to the gradients."""
        return not self._should_accumulate()

    @property
    def ends_training(self) -> bool:
        """Whether training ends after the current step, and its weights can be validated."""
        trainer, fit = self.trainer, self.trainer.fit_loop
        if not trainer.enable_validation:
            return False
        epochs = fit.max_epochs or -1
        last_epoch = 0 < epochs <= fit.epoch_progress.current.processed + 1 and self._num_ready_batches_reached()
        return last_epoch or 0 < self.max_steps <= self.global_step or (trainer.should_stop and fit._can_stop_early)

    def on_save_checkpoint(self) -> dict[str, Any]:
        validation = ("done" if self.val_loop.ended else "due") if self.trainer.validating else None
        return {**super().on_save_checkpoint(), VALIDATION: validation}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self.loaded = state_dict.get(VALIDATION)


class ValidationLoop(_EvaluationLoop):
    """Lightning's loop over the batches of a validation, which knows when its figures are complete."""

    ended = False

    def on_run_start(self) -> None:
        self.ended = False
        super().on_run_start()

    def _on_evaluation_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended = True
        super()._on_evaluation_end(*args, **kwargs)
