from __future__ import annotations

from torch import Tensor

from rule_extrapolation.grammars.grammar import PAD
from rule_extrapolation.runs.run_folder import COMPLETIONS_ALONE
from rule_extrapolation.training.module import RuleExtrapolation


class CompletionTraining(RuleExtrapolation):
    """Trains a conditional model on (B, 2, T) batches: prompts and their completions, both followed by PAD.

    All losses are one, the cross-entropy of the completions' symbols and EOS, in nats for each: no symbol of a prompt
    is a target, and no PAD. The optimum is not known (``CompletionDataModule``), so there is no ``kl``.
    Prompts are completed and judged as ever.
    """

    @property
    def caveat(self) -> str:
        return "; ".join(filter(None, [COMPLETIONS_ALONE, super().caveat]))

    def validation_names(self) -> list[str]:
        return [name for name in super().validation_names() if name != "Val/kl"]

    def losses(self, batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        prompts, completions = batch.unbind(1)
        logits = self.model.continuation(prompts, completions, (prompts != PAD).sum(1))
        return self.losses_of(logits, completions), logits

    def losses_of(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        losses = super().losses_of(logits, targets)
        return dict.fromkeys(losses, losses["loss_ignore_pad"])

    def count(self, name: str, targets: Tensor) -> Tensor:
        return (targets != PAD).sum()

    def weight(self, name: str, own: Tensor, batch: Tensor) -> Tensor | float:
        return self.shard.weight(batch, self.count(name, own[:, 1]), self.count(name, batch[:, 1]))

    def evaluation_step(self, batch: Tensor, stage: str) -> None:
        shard = self.shard
        own = shard.of(batch)
        _, logits = self.losses(own)
        for name, (value, count) in self.evaluate_batch(logits, own[:, 1]).items():
            if shard.size > 1:
                value, count = value * self.weight(name, own, batch), int(self.count(name, batch[:, 1]))
            self.log(f"{stage}/{name}", value, batch_size=count, sync_dist=True)

    def evaluate_batch(self, logits: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, int]]:
        means = super().evaluate_batch(logits, targets)
        means.pop("kl", None)
        return {name: (value, int(self.count(name, targets))) for name, (value, _) in means.items()}
