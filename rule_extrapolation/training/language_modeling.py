from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from rule_extrapolation.core.errors import UndefinedPrediction
from rule_extrapolation.core.random import generator
from rule_extrapolation.core.task import Task
from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.inference.decoding import Decoder
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.training.accumulation import AccumulatedStep, scale_gradients
from rule_extrapolation.training.shard import Shard


class LanguageModeling(LightningModule, ABC):
    """Train a model to predict the next token: the base of training on words, on completions and on texts.

    A subclass computes the losses of a batch, and says what is logged and how a run is tested. If several processes
    train the module, each of them gets the same batches and takes its own rows of them.

    Args:
        model: the model to train.
        task: what the model is trained on, a Grammar or a TextTask.
        optimizer: builds the optimizer from the model's parameters; None, like the scheduler, if it is not trained.
        scheduler: builds Lightning's scheduler configuration from the optimizer.
        decoder: completes the prompts.
    """

    ood: Any = None
    """The loss on OOD prompts that is added to the objective, or None."""
    not_stackable_reason: ClassVar[str | None] = None
    """Why several seeds cannot be trained as one stack, or None if they can."""

    def __init__(
        self,
        model: LanguageModel,
        task: Task,
        optimizer: Callable[..., Optimizer] | None,
        scheduler: Callable[[Optimizer], dict[str, Any]] | None,
        decoder: Decoder,
    ):
        super().__init__()
        self.model, self.task, self.decoder = model, task, decoder
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.completions: dict[str, Tensor] = {}
        """The completions of the test prompts, by prompt set."""
        self.prompt_accuracies: dict[str, float] = {}
        """The accuracies logged when the prompts were last completed."""
        self.rng_state: Tensor | None = None
        self.accumulated: AccumulatedStep | None = None
        """The current optimizer step, if it is one over several batches."""

    # What the experiment calls

    @abstractmethod
    def validation_names(self) -> list[str]:
        """The names that a validation can log, which callbacks may monitor."""

    def reference_losses(self) -> dict[str, Any]:
        """Figures to compare a run's results with, in addition to those of its data. They need no training."""
        return {}

    @abstractmethod
    def completion_rows(self) -> list[dict[str, Any]]:
        """The rows of completions.csv, one for each completion of a test prompt."""

    def save_task(self, folder: Path) -> None:
        """Save to the run's folder what its model cannot be used without, in addition to the configuration."""

    def check_checkpoint(self, key: str, checkpoint: dict[str, Any]) -> None:
        """Raise a ConfigError for ``key`` if the checkpoint is of another task, although its weights would fit."""

    # Lightning's hooks

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning stores the name of each hook that it calls, some fifty times a step, and nn.Module would search its
        # parameters and buffers each time.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def caveat(self) -> str | None:
        """What a table must say next to the run's figures, or None."""
        return self.model.caveat

    @property
    def shard(self) -> Shard:
        """This process's share of a batch's rows."""
        return Shard() if self._trainer is None else Shard(self.trainer.global_rank, self.trainer.world_size)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make_optimizer(self.model.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}

    def complete(self, prompts: Tensor) -> Tensor | None:
        """(B, P) prompts -> (B, P + new) completions, or None if the model's logits define none, as once it has
        diverged. Each process completes its own rows, and all get the whole."""
        shard = self.shard
        try:
            own = self.decoder(self.model, prompts, rows=shard.rows if shard.size > 1 else None)
        except UndefinedPrediction:
            own = None
        if shard.size == 1 or not len(prompts):
            return own
        widths = shard.gather(torch.tensor([0 if own is None else own.shape[1]], device=self.device))
        if own is None or not widths.all():
            return None
        width = int(widths.max())
        height = -(-len(prompts) // shard.size)
        padded = F.pad(own, (0, width - own.shape[1], 0, height - len(own)), value=PAD)
        return shard.gather(padded).transpose(0, 1).flatten(0, 1)[: len(prompts)]

    # Dropout draws from torch's global generator, which has a different state in each process. A checkpoint holds all
    # states, so that a resumed run draws the same numbers.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = torch.get_rng_state()
        checkpoint["rng_state"] = state if self.shard.size == 1 else self.shard.gather(state.to(self.device)).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rng_state = checkpoint["rng_state"]

    def begin_batch(self, batch_idx: int) -> AccumulatedStep | None:
        """The optimizer step that a training batch is a part of, or None if it is a step of its own."""
        num_batches = self.trainer.accumulate_grad_batches
        if num_batches == 1:
            self.accumulated = None
        elif batch_idx % num_batches == 0:
            self.accumulated = AccumulatedStep(num_batches)
        return self.accumulated

    @property
    def completes_step(self) -> bool:
        """Whether an optimizer step follows the current batch."""
        return self.accumulated is None or self.trainer.fit_loop.epoch_loop.completes_step

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.accumulated is not None:  # before gradients are clipped
            scale_gradients(self.parameters(), self.accumulated.gradient_factor)

    def on_train_start(self) -> None:
        rank = self.shard.rank
        states = () if self.rng_state is None else torch.atleast_2d(self.rng_state.cpu())
        if rank < len(states):
            torch.set_rng_state(states[rank].clone())  # torch ignores a view's offset into its storage
        elif rank:
            torch.manual_seed(generator(torch.initial_seed(), rank).initial_seed())


def logs_this_step(trainer: Trainer) -> bool:
    """Whether the current training step is logged.

    Lightning skips the other steps too, but only after most of the work of logging, which takes as long as a small
    model's step itself.
    """
    every = trainer.log_every_n_steps
    return every > 0 and ((trainer.global_step + 1) % every == 0 or trainer.should_stop)


def end_of_training(trainer: Trainer, epoch: int) -> dict[str, Any]:
    """The state of Lightning's fit loop at the end of training.

    Lightning counts the epoch in which a run stops as complete, and its count of steps is one behind during a
    validation.
    """
    progress = deepcopy(trainer.fit_loop.state_dict())
    progress["epoch_progress"]["current"]["completed"] = epoch + 1
    progress["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step
    return progress
