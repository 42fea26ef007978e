from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from rule_extrapolation.errors import ConfigError
from rule_extrapolation.grammars.grammar import PAD, Grammar
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.seeding import generator
from rule_extrapolation.training.decoding import Decoder
from rule_extrapolation.training.metrics import accuracies, judge_completions, metric_names
from rule_extrapolation.training.ood import OODTraining
from rule_extrapolation.training.shard import Shard


class RuleExtrapolation(LightningModule):
    """Trains a model on words of a grammar, and measures which rules its completions of prompts keep.

    Logs Train/loss and Train/loss_ignore_pad, and Train/ood_loss where OOD prompts are trained on; and for validation
    (Val/) and test (Test/): ``loss`` (cross-entropy over all target positions, PAD included), ``loss_ignore_pad``,
    ``objective`` (whichever of the two the model trains on), ``accuracy`` (of the next token, PAD targets left out),
    ``kl`` (loss - optimal loss, where that is known), and the accuracies of ``metrics.accuracies`` for the prompt sets
    ID, OOD and SOS. Losses are in nats per token.

    Where several processes train the module, each gets the same batches and takes its own rows of them.

    Args:
        optimizer: makes the optimizer from parameters.
        scheduler: makes Lightning's scheduler configuration from the optimizer.
        decoder: completes the prompts.
        ood: training on OOD prompts besides, if any: ``ood.weight`` times its loss is added to the objective.

    Raises:
        ConfigError: the model's context is too short for the grammar's words or prompts.
    """

    def __init__(
        self,
        model: LanguageModel,
        grammar: Grammar,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], dict[str, Any]],
        decoder: Decoder,
        ood: OODTraining | None = None,
    ):
        super().__init__()
        self.model, self.grammar, self.decoder, self.ood = model, grammar, decoder, ood
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.completions: dict[str, Tensor] = {}
        """The test prompts' completions, by prompt set."""
        self.prompt_accuracies: dict[str, float] = {}
        """The logged accuracies of the last time that the prompts were completed."""
        self.rng_state: Tensor | None = None
        longest = max(grammar.max_length + 1, *(prompts.shape[1] for prompts in grammar.prompts.values()))
        if model.max_context is not None and model.max_context < longest:
            raise ConfigError(
                "max_length",
                grammar.max_length,
                f"words or prompts take {longest} tokens, and the model reads {model.max_context}; change one",
            )

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
        caveats = [self.model.caveat, self.ood and self.ood.caveat]
        return "; ".join(filter(None, caveats)) or None

    @property
    def shard(self) -> Shard:
        return Shard() if self._trainer is None else Shard(self.trainer.global_rank, self.trainer.world_size)

    def validation_names(self) -> list[str]:
        """What a callback may monitor: everything that a validation can log."""
        losses = ["loss", "loss_ignore_pad", "objective", "accuracy"]
        losses += ["kl"] if self.grammar.process is not None else []
        paths = [f"{name}{part}" for name in self.grammar.prompts for part in ("", "/finished")]
        metrics = [f"{path}/{metric}_accuracy" for path in paths for metric in metric_names(self.grammar)]
        return [f"Val/{name}" for name in losses + metrics]

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make_optimizer(self.model.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}

    def losses(self, batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(B, T + 1) rows -> the losses, and (B, num_tokens, T) logits."""
        logits = self.model(batch[:, :-1])
        return self.losses_of(logits, batch[:, 1:]), logits

    def losses_of(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """(..., B, num_tokens, T) logits and (..., B, T) targets -> the losses, each (...)."""
        per_token = F.cross_entropy(logits.flatten(0, -3), targets.flatten(0, -2), reduction="none").view_as(targets)
        is_symbol = targets != PAD
        losses = {
            "loss": per_token.mean((-2, -1)),
            "loss_ignore_pad": per_token.where(is_symbol, 0).sum((-2, -1)) / is_symbol.sum((-2, -1)),
        }
        losses["objective"] = losses["loss_ignore_pad" if self.model.ignore_pad_in_loss else "loss"]
        return losses

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        shard = self.shard
        own = shard.of(batch)
        losses, _ = self.losses(own)
        if shard.size > 1:
            losses = {name: loss * self.weight(name, own, batch) for name, loss in losses.items()}
        objective = losses.pop("objective")
        if self.ood is not None:
            losses["ood_loss"] = self.ood_loss(self.ood.next_batch().to(self.device))
            objective = objective + self.ood.weight * losses["ood_loss"]
        if logs_this_step(self.trainer):
            self.log_dict({f"Train/{name}": loss for name, loss in losses.items()}, sync_dist=True)
        return objective

    def weight(self, name: str, own: Tensor, batch: Tensor) -> Tensor | float:
        """``Shard.weight`` of a loss, by this process's rows and those of the whole batch."""
        return self.shard.weight(batch, self.count(name, own[:, 1:]), self.count(name, batch[:, 1:]))

    def count(self, name: str, targets: Tensor) -> Tensor | int:
        """How much a loss or the accuracy is a mean over: symbols, each row's EOS among them, or rows."""
        over_symbols = ("loss_ignore_pad", "accuracy", *(["objective"] if self.model.ignore_pad_in_loss else []))
        return (targets != PAD).sum() if name in over_symbols else len(targets)

    def ood_loss(self, batch: Tensor) -> Tensor:
        own = self.shard.of(batch)
        weight = self.shard.weight(batch, self.ood.count(own), self.ood.count(batch))
        return self.ood.loss(self.model, own) * weight

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.evaluation_step(batch, "Val")

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.evaluation_step(batch, "Test")

    def evaluation_step(self, batch: Tensor, stage: str) -> None:
        shard = self.shard
        own = shard.of(batch)
        for name, (value, count) in self.evaluate_batch(self.model(own[:, :-1]), own[:, 1:]).items():
            if shard.size > 1:
                # The same count in each process: Lightning cuts the mean of counts that differ to an integer.
                value, count = value * self.weight(name, own, batch), int(self.count(name, batch[:, 1:]))
            self.log(f"{stage}/{name}", value, batch_size=count, sync_dist=True)

    def evaluate_batch(self, logits: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        """(B, num_tokens, T) logits and (B, T) targets -> means, each with how many it is taken over."""
        losses = self.losses_of(logits, targets)
        if self.grammar.optimal_loss is not None:
            losses["kl"] = losses["loss"] - self.grammar.optimal_loss
        is_symbol = targets != PAD
        losses["accuracy"] = (logits.argmax(1) == targets)[is_symbol].float().mean()
        # A batch counts for as many as it averages over, so that the epoch's mean is the mean over the data.
        over_symbols = {"loss_ignore_pad", "accuracy", *(["objective"] if self.model.ignore_pad_in_loss else [])}
        rows, symbols = len(targets), int(is_symbol.sum())
        return {name: (value, symbols if name in over_symbols else rows) for name, value in losses.items()}

    def on_validation_epoch_end(self) -> None:
        self.complete_prompts("Val")
        self.log_dict(self.prompt_accuracies, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        self.completions = self.complete_prompts("Test")
        self.log_dict(self.prompt_accuracies, sync_dist=True)

    def complete_prompts(self, stage: str) -> dict[str, Tensor]:
        """Complete every prompt set, and find what holds: ``prompt_accuracies``. Returns the completions by set."""
        completed, self.prompt_accuracies = {}, {}
        for name, prompts in self.grammar.prompts.items():
            completions = self.complete(prompts.to(self.device)).cpu()
            completed[name] = completions
            verdicts = judge_completions(self.grammar, completions, prompts.shape[1])
            self.prompt_accuracies |= accuracies(verdicts, f"{stage}/{name}")
        return completed

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
    # that it had, and with the OOD prompts that are next.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = torch.get_rng_state()
        checkpoint["rng_state"] = state if self.shard.size == 1 else self.shard.gather(state.to(self.device)).cpu()
        if self.ood is not None:
            checkpoint["ood"] = self.ood.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rng_state = checkpoint["rng_state"]
        if self.ood is not None:
            self.ood.load_state_dict(checkpoint["ood"])

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
