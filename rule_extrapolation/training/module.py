from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.grammars.chance import chance_levels
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.grammars.judging import accuracies, judged_rows, metric_names, stop_at_once
from rule_extrapolation.inference.decoding import Decoder
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.training.language_modeling import LanguageModeling, logs_this_step
from rule_extrapolation.training.ood import OODTraining


class RuleExtrapolation(LanguageModeling):
    """Train a model on words of a grammar, and measure which rules its completions of prompts keep.

    Training logs Train/loss, Train/loss_ignore_pad and, if OOD prompts are trained on, Train/ood_loss. Validation
    (Val/) and test (Test/) log

    - ``loss``: cross-entropy over all target positions, PAD included;
    - ``loss_ignore_pad``: the same without PAD;
    - ``objective``: the one of these two that the model is trained on;
    - ``accuracy``: of the next token, without PAD;
    - ``kl``: loss - optimal loss, where the optimal loss is known;
    - the accuracies of ``grammars.judging.accuracies`` on the prompt sets ID, OOD and SOS.

    Losses are in nats per token.

    Args:
        grammar: the language.
        ood: a loss on OOD prompts; ``ood.weight`` times this loss is added to the objective.

    Raises:
        ConfigError: the model's context is too short for the grammar's words or prompts.
    """

    def __init__(
        self,
        model: LanguageModel,
        grammar: Grammar,
        optimizer: Callable[..., Optimizer] | None,
        scheduler: Callable[[Optimizer], dict[str, Any]] | None,
        decoder: Decoder,
        ood: OODTraining | None = None,
    ):
        super().__init__(model, grammar, optimizer, scheduler, decoder)
        self.grammar, self.ood = grammar, ood
        longest = max(grammar.max_length + 1, *(prompts.shape[1] for prompts in grammar.prompts.values()))
        if model.max_context is not None and model.max_context < longest:
            raise ConfigError(
                "max_length",
                grammar.max_length,
                f"words or prompts take {longest} tokens, and the model reads {model.max_context}; change one",
            )

    @property
    def caveat(self) -> str | None:
        caveats = [super().caveat, self.ood and self.ood.caveat]
        return "; ".join(filter(None, caveats)) or None

    @property
    def logs_kl(self) -> bool:
        """Whether the optimal loss is known."""
        return self.grammar.process is not None

    def validation_names(self) -> list[str]:
        losses = ["loss", "loss_ignore_pad", "objective", "accuracy"]
        losses += ["kl"] if self.logs_kl else []
        paths = [f"{name}{part}" for name in self.grammar.prompts for part in ("", "/finished")]
        metrics = [f"{path}/{metric}_accuracy" for path in paths for metric in metric_names(self.grammar)]
        return [f"Val/{name}" for name in losses + metrics]

    def reference_losses(self) -> dict[str, Any]:
        chance = chance_levels(self.grammar, lambda prompts: self.decoder.budget(self.model, prompts.shape[1]))
        stopping = stop_at_once(self.grammar)
        return {"prompts": self.grammar.num_prompts(), "chance_levels": chance, "stop_at_once": stopping}

    def completion_rows(self) -> list[dict[str, Any]]:
        return judged_rows(self.grammar, self.completions)

    def targets(self, batch: Tensor) -> Tensor:
        """(B, T + 1) rows -> the (B, T) tokens that are predicted."""
        return batch[:, 1:]

    def logits(self, batch: Tensor) -> Tensor:
        """(B, T + 1) rows -> (B, num_tokens, T) logits of the targets."""
        return self.model(batch[:, :-1])

    def losses(self, batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(B, T + 1) rows -> the losses, and (B, num_tokens, T) logits."""
        logits = self.logits(batch)
        return self.losses_of(logits, self.targets(batch)), logits

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
            losses = {name: loss * self.shard_weight(name, own, batch) for name, loss in losses.items()}
        objective = losses.pop("objective")
        step = self.begin_batch(batch_idx)
        if step is not None:
            targets = self.targets(batch)
            objective = objective * step.weight(self.count("objective", targets))
            for name, loss in losses.items():
                step.add(name, loss, self.count(name, targets))
        if not self.completes_step:
            return objective
        losses = losses if step is None else step.means()
        if self.ood is not None:
            losses["ood_loss"] = self.ood_loss(self.ood.next_batch().to(self.device))
            scale = 1 if step is None else step.relative_size
            objective = objective + scale * self.ood.weight * losses["ood_loss"]
        if logs_this_step(self.trainer):
            self.log_dict({f"Train/{name}": loss for name, loss in losses.items()}, sync_dist=True)
        return objective

    def shard_weight(self, name: str, own: Tensor, batch: Tensor) -> Tensor | float:
        """``Shard.weight`` of a loss, for the rows ``own`` of this process out of the batch."""
        return self.shard.weight(batch, *(self.count(name, self.targets(rows)) for rows in (own, batch)))

    def count(self, name: str, targets: Tensor) -> Tensor | int:
        """The number of symbols (EOS included) or of rows that a loss or the accuracy is a mean over."""
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
        for name, (value, count) in self.evaluate_batch(self.logits(own), self.targets(own)).items():
            if shard.size > 1:
                # The same count in each process, since Lightning truncates the mean of different counts to an integer.
                value, count = value * self.shard_weight(name, own, batch), int(self.count(name, self.targets(batch)))
            self.log(f"{stage}/{name}", value, batch_size=count, sync_dist=True)

    def evaluate_batch(self, logits: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        """(B, num_tokens, T) logits and (B, T) targets -> losses and accuracy, each with its ``count``."""
        losses = self.losses_of(logits, targets)
        if self.logs_kl:
            losses["kl"] = losses["loss"] - self.grammar.optimal_loss
        is_symbol = targets != PAD
        losses["accuracy"] = (logits.argmax(1) == targets)[is_symbol].float().mean()
        # Batches are weighted by their counts, so that the mean over an epoch is the mean over the data.
        return {name: (value, int(self.count(name, targets))) for name, value in losses.items()}

    def on_validation_epoch_end(self) -> None:
        self.complete_prompts("Val")
        self.log_dict(self.prompt_accuracies, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        self.completions = self.complete_prompts("Test")
        self.log_dict(self.prompt_accuracies, sync_dist=True)

    def complete_prompts(self, stage: str) -> dict[str, Tensor]:
        """Complete every prompt set and update ``prompt_accuracies``. Returns the completions by prompt set, without
        those that the model's logits do not define."""
        completed, self.prompt_accuracies = {}, {}
        for name, prompts in self.grammar.prompts.items():
            completions = self.complete(prompts.to(self.device))
            if completions is None:
                continue
            completed[name] = completions = completions.cpu()
            self.prompt_accuracies |= accuracies(self.grammar, completions, prompts.shape[1], f"{stage}/{name}")
        return completed

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.ood is not None:
            checkpoint["ood"] = self.ood.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.ood is not None:
            self.ood.load_state_dict(checkpoint["ood"])
