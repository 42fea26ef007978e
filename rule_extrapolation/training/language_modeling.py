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

from rule_extrapolation.core.random import generator
from rule_extrapolation.core.task import Task
from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.inference.decoding import Decoder
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.training.shard import Shard


class LanguageModeling(LightningModule, ABC):
    """Trains a model to predict the next token; what is common to all that it may be trained on.

    A subclass says what a batch's losses are and what is logged, and how a run is tested and shown. Where several
    processes train the module, each gets the same batches and takes its own rows of them.

    Args:
        task: what it is trained on, a Grammar or a TextTask.
        optimizer: makes the optimizer from parameters.
        scheduler: makes Lightning's scheduler configuration from the optimizer.
        decoder: completes the prompts.
    """

    ood: Any = None
    """Training on OOD prompts besides, if any."""
    not_stackable_reason: ClassVar[str | None] = None
    """What keeps several seeds from being trained as one, if anything."""

    def __init__(
        self,
        model: LanguageModel,
        task: Task,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], dict[str, Any]],
        decoder: Decoder,
    ):
        super().__init__()
        self.model, self.task, self.decoder = model, task, decoder
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.completions: dict[str, Tensor] = {}
        """The test prompts' completions, by prompt set."""
        self.prompt_accuracies: dict[str, float] = {}
        """The logged accuracies of the last time that the prompts were completed."""
        self.rng_state: Tensor | None = None

    # What a run reads of it

    @abstractmethod
    def validation_names(self) -> list[str]:
        """What a callback may monitor: everything that a validation can log."""

    def reference_losses(self) -> dict[str, Any]:
        """What the figures of a run are held against, besides what the data has; no training is needed for it."""
        return {}

    @abstractmethod
    def completion_rows(self) -> list[dict[str, Any]]:
        """A row of completions.csv for each of the test prompts' completions."""

    def save_task(self, folder: Path) -> None:
        """Keep in the run's folder what its model cannot be used without, besides the configuration."""

    def check_checkpoint(self, key: str, checkpoint: dict[str, Any]) -> None:
        """Raise a ConfigError, with ``key`` for its field, for a checkpoint of another task whose weights would fit."""

    # What Lightning reads of it

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes each hook's name here, some fifty times a step, and nn.Module would search weights and buffers
        # for each.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def caveat(self) -> str | None:
        """What a table must say beside the figures, if anything."""
        return self.model.caveat

    @property
    def shard(self) -> Shard:
        return Shard() if self._trainer is None else Shard(self.trainer.global_rank, self.trainer.world_size)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make_optimizer(self.model.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}

    def complete(self, prompts: Tensor) -> Tensor:
        """(B, P) prompts -> (B, P + new) in every process, though each completes only its own."""
        shard = self.shard
        if shard.size == 1 or not len(prompts):
            return self.decoder(self.model, prompts)
        own = self.decoder(self.model, prompts, rows=shard.rows)
        width = int(shard.gather(torch.tensor([own.shape[1]], device=self.device)).max())
        height = -(-len(prompts) // shard.size)
        padded = F.pad(own, (0, width - own.shape[1], 0, height - len(own)), value=PAD)
        return shard.gather(padded).transpose(0, 1).flatten(0, 1)[: len(prompts)]

    # Dropout draws from torch's global generator, in each process another stream: a resumed run goes on with the states
    # that it had.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = torch.get_rng_state()
        checkpoint["rng_state"] = state if self.shard.size == 1 else self.shard.gather(state.to(self.device)).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rng_state = checkpoint["rng_state"]

    def on_train_start(self) -> None:
        rank = self.shard.rank
        states = () if self.rng_state is None else torch.atleast_2d(self.rng_state.cpu())
        if rank < len(states):
            torch.set_rng_state(states[rank].clone())  # torch reads a row of it from the start of all
        elif rank:
            torch.manual_seed(generator(torch.initial_seed(), rank).initial_seed())


def logs_this_step(trainer: Trainer) -> bool:
    """Whether the training step under way is one that is logged.

    Lightning leaves the others out itself, but only after most of the work of logging them, which costs a small model
    as much as its step.
    """
    every = trainer.log_every_n_steps
    return every > 0 and ((trainer.global_step + 1) % every == 0 or trainer.should_stop)


def end_of_training(trainer: Trainer, epoch: int) -> dict[str, Any]:
    """The state of Lightning's fit loop as it is when a training ends within an epoch, or with it.

    Lightning counts the epoch that a run stops in as complete, and a step back while it validates.
    """
    progress = deepcopy(trainer.fit_loop.state_dict())
    progress["epoch_progress"]["current"]["completed"] = epoch + 1
    progress["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step
    return progress
