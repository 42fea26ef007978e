from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.optim import Optimizer

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.data.text import Text
from rule_extrapolation.inference.decoding import Decoder
from rule_extrapolation.models.language_model import LanguageModel, State
from rule_extrapolation.training.language_modeling import LanguageModeling, logs_this_step

if TYPE_CHECKING:
    from rule_extrapolation.data.text_data import TextTask

PROMPTS, PROMPT_TOKENS = 8, 32
"""How many stretches of the test part are completed, and their greatest length in tokens."""
PART_OF_STAGE = {"Val": "validation", "Test": "test"}


class TextModeling(LanguageModeling):
    """Train a model on a text.

    Training logs Train/loss and Train/perplexity. Validation (Val/) and test (Test/) log

    - ``loss``: cross-entropy in nats per token;
    - ``perplexity``: e^loss;
    - ``bits_per_character``: the bits of all predictions, divided by the number of characters in the part. At word
      level, white space and the spelling of unknown words cost no bits;
    - ``accuracy``: of the next token;
    - ``objective``: the loss again.

    They are over all tokens of the part except its first, each of which is predicted once.

    Args:
        carry_state: the rows of a batch continue those of the batch before, and start from the model's state at their
            ends, detached from its gradient. Each part starts from the initial state.

    Raises:
        ConfigError: the model is not causal, or states are carried and the model's context is limited.
    """

    not_stackable_reason = "each run reads the text by itself"

    def __init__(
        self,
        model: LanguageModel,
        task: TextTask,
        optimizer: Callable[..., Optimizer] | None,
        scheduler: Callable[[Optimizer], dict[str, Any]] | None,
        decoder: Decoder,
        ood: None = None,
        carry_state: bool = False,
    ):
        super().__init__(model, task, optimizer, scheduler, decoder)
        if not model.causal:
            raise ConfigError("published_mask", True, "lets the model see the tokens that it predicts; set false")
        if carry_state and model.max_context is not None:
            fix = f"the model reads at most {model.max_context} tokens in all; set false"
            raise ConfigError("carry_state", True, fix)
        self.carry_state = carry_state
        self.states: dict[str, State] = {}
        """The model's states after the last batch, by stage."""
        self.totals = torch.zeros(3, dtype=torch.float64)
        """Nats, correct predictions and tokens of the current evaluation."""

    @property
    def text(self) -> Text:
        return self.task.text

    def validation_names(self) -> list[str]:
        return [f"Val/{name}" for name in ("loss", "objective", "perplexity", "bits_per_character", "accuracy")]

    def logits(self, tokens: Tensor, stage: str, begins: bool) -> Tensor:
        """(B, T) tokens -> (B, num_tokens, T) logits.

        If states are carried, the model starts from the state after the stage's last batch, or from the initial state
        if this batch ``begins`` the part.
        """
        if not self.carry_state:
            return self.model(tokens)
        state = self.model.init_state(len(tokens)) if begins else self.states[stage]
        logits, state = self.model.advance(tokens, state)
        self.states[stage] = apply_to_collection(state, Tensor, Tensor.detach)
        return logits.transpose(1, 2)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        own = self.shard.of(batch)
        targets = own[:, 1:]
        logits = self.logits(own[:, :-1], "Train", begins=batch_idx == 0)
        tokens = (targets != PAD).sum()
        loss = F.cross_entropy(logits, targets, ignore_index=PAD, reduction="sum") / tokens.clamp_min(1)
        count = (batch[:, 1:] != PAD).sum()
        objective = loss = loss * self.shard.weight(batch, tokens, count)
        step = self.begin_batch(batch_idx)
        if step is not None:
            objective = loss * step.weight(count)
            step.add("loss", loss, count)
            loss = step.means()["loss"]
        if self.completes_step and logs_this_step(self.trainer):
            self.log("Train/loss", loss, sync_dist=True)
            self.log("Train/perplexity", loss.detach().exp(), sync_dist=True)
        return objective

    def on_validation_epoch_start(self) -> None:
        self.totals = torch.zeros(3, dtype=torch.float64)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.evaluation_step(batch, "Val", batch_idx)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.evaluation_step(batch, "Test", batch_idx)

    def evaluation_step(self, batch: Tensor, stage: str, batch_idx: int) -> None:
        own = self.shard.of(batch)
        targets = own[:, 1:]
        logits = self.logits(own[:, :-1], stage, begins=batch_idx == 0)
        is_token = (targets != PAD) & (self.shard.rank < len(batch))
        nats = F.cross_entropy(logits, targets, reduction="none")[is_token].sum()
        hits = (logits.argmax(1) == targets)[is_token].sum()
        self.totals += torch.stack([nats, hits, is_token.sum()]).cpu()  # in float64

    def on_validation_epoch_end(self) -> None:
        self.log_figures("Val")

    def on_test_epoch_end(self) -> None:
        self.log_figures("Test")
        completions = self.complete(self.test_prompts().to(self.device))
        self.completions = {} if completions is None else {"test": completions.cpu()}

    def log_figures(self, stage: str) -> None:
        self.states.pop(stage, None)
        totals = self.totals
        if self.shard.size > 1:
            totals = self.shard.gather(totals.to(self.device)).sum(0)
        nats, hits, tokens = totals.tolist()
        loss, part = nats / tokens, PART_OF_STAGE[stage]
        tokens_per_character = self.text.num(part) / self.text.num(part, "characters")
        figures = {
            "loss": loss,
            "objective": loss,
            "perplexity": math.exp(min(loss, 700)),  # e^709 is the largest float
            "bits_per_character": loss / math.log(2) * tokens_per_character,
            "accuracy": hits / tokens,
        }
        self.log_dict({f"{stage}/{name}": figure for name, figure in figures.items()}, sync_dist=True)

    def test_prompts(self) -> Tensor:
        """(PROMPTS, P) tokens: stretches of the test part at equal distances."""
        tokens = self.text.tokens("test")
        length = min(PROMPT_TOKENS, len(tokens), self.model.max_context or PROMPT_TOKENS)
        starts = np.linspace(0, len(tokens) - length, PROMPTS, dtype=int)
        return torch.from_numpy(tokens[starts[:, None] + np.arange(length)].astype(np.int64))

    def completion_rows(self) -> list[dict[str, Any]]:
        vocabulary, length = self.task.vocabulary, self.test_prompts().shape[1]
        rows = []
        for name, completions in self.completions.items():
            for tokens in completions.tolist():
                completion, finished = vocabulary.decode_completion(tokens[length:])
                decoded = {"prompt": vocabulary.decode(tokens[:length]), "completion": completion}
                rows.append({"prompt_set": name, **decoded, "finished": finished})
        return rows

    # The weights mean nothing without the vocabulary, and the text may change after the run.

    def save_task(self, folder: Path) -> None:
        self.task.vocabulary.save(folder)

    def check_checkpoint(self, key: str, checkpoint: dict[str, Any]) -> None:
        if json.loads(checkpoint.get("vocabulary", "[]")) != [*self.task.vocabulary.symbols]:
            raise ConfigError(key, None, "it has another vocabulary; set that run's text and data settings")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["vocabulary"] = json.dumps(self.task.vocabulary.symbols)
        if "Train" in self.states:
            shard = self.shard
            # Each tensor (...) becomes (processes, ...).
            gather = shard.gather if shard.size > 1 else lambda tensor: tensor[None]
            checkpoint["carried_state"] = apply_to_collection(self.states["Train"], Tensor, lambda t: gather(t).cpu())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "carried_state" in checkpoint:
            rank = self.shard.rank
            self.states["Train"] = apply_to_collection(checkpoint["carried_state"], Tensor, lambda t: t[rank])

    def on_train_start(self) -> None:
        super().on_train_start()
        self.states = apply_to_collection(self.states, Tensor, lambda tensor: tensor.to(self.device))
