from __future__ import annotations

from torch import Tensor

from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.runs.run_folder import COMPLETIONS_ALONE
from rule_extrapolation.training.module import RuleExtrapolation


class CompletionTraining(RuleExtrapolation):
    """Train a conditional model on (B, 2, T) batches of prompts and their completions, both followed by PAD.

    All losses are the same: the cross-entropy of the completions' symbols and EOS, in nats per token. Neither the
    prompts' symbols nor PAD are targets. The optimal loss is not known (see ``CompletionDataModule``), so no ``kl`` is
    logged. Prompts are completed and judged as in ``RuleExtrapolation``.
    """

    @property
    def caveat(self) -> str:
        return "; ".join(filter(None, [COMPLETIONS_ALONE, super().caveat]))

    logs_kl = False

    def targets(self, batch: Tensor) -> Tensor:
        return batch[:, 1]

    def logits(self, batch: Tensor) -> Tensor:
        prompts, completions = batch.unbind(1)
        return self.model.continuation_logits(prompts, completions, (prompts != PAD).sum(1))

    def losses_of(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        losses = super().losses_of(logits, targets)
        return dict.fromkeys(losses, losses["loss_ignore_pad"])

    def count(self, name: str, targets: Tensor) -> Tensor:
        return (targets != PAD).sum()
