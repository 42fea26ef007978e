"""The probability mass that a model gives to all short strings, while it trains (Mészáros et al. 2024, figure 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError, check_positive
from rule_extrapolation.grammars.grammar import EOS, Grammar, all_strings, prepend_sos
from rule_extrapolation.models.language_model import LanguageModel

MAX_STRINGS = 20_000
ROWS = 4096
"""Strings that a model reads at once, for the sake of memory."""

CATEGORIES = {
    "rules_1_and_2": (True, True),
    "rule_1_only": (True, False),
    "rule_2_only": (False, True),
    "neither": (False, False),
}


class Dynamics(Callback):
    """Logs the probability mass of all strings of up to ``max_length`` symbols, by the rules that they keep.

    ``Dynamics/rules_1_and_2``, ``rule_1_only``, ``rule_2_only`` and ``neither`` (a language with one rule has no
    category that the other is kept in), and ``Dynamics/longer``: the rest, which goes to longer strings and to what is
    no string, with SOS or PAD before EOS. They sum to 1.

    A figure at step t is of the weights after t steps: before training (0), every ``every_n_steps`` and at the end.
    A resumed run does not repeat the step that it goes on from; a model with nothing to train is logged once.

    Args:
        grammar, model: those of the run; the program gives them.

    Raises:
        ConfigError: a number below 1, too many strings, strings too long for the model.
        ValueError: the model is not causal.
    """

    def __init__(self, grammar: Grammar, model: LanguageModel, every_n_steps: int = 10, max_length: int = 8):
        check_positive(every_n_steps=every_n_steps, max_length=max_length)
        if not grammar.rules:
            raise ValueError(f"needs a language: {grammar.name} has no rules to tell strings by")
        check_strings(grammar.alphabet, max_length, model.max_context)
        if not model.causal:
            raise ValueError("needs a causal model: one that sees the future gives strings no probabilities")
        self.alphabet, self.every_n_steps, self.max_length = grammar.alphabet, every_n_steps, max_length
        self.masks = categories(grammar, max_length)
        self.logged_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self.log_masses(trainer, pl_module)
        self.logged_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self.log_masses(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.log_masses(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.model.num_parameters:
            self.log_masses(trainer, pl_module)

    def log_masses(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.logged_step:  # a batch of several to a step, or the last one
            return
        self.logged_step = trainer.global_step
        masses = probability_masses(pl_module.model, self.alphabet, self.max_length, self.masks)
        for logger in trainer.loggers:
            logger.log_metrics({f"Dynamics/{name}": mass for name, mass in masses.items()}, trainer.global_step)


def check_strings(alphabet: str, max_length: int, max_context: int | None) -> None:
    """Raise a ConfigError if there are too many strings, or if they do not fit the model's context behind SOS."""
    most, strings = 0, 1
    while most < max_length and strings + len(alphabet) ** (most + 1) <= MAX_STRINGS:
        most += 1
        strings += len(alphabet) ** most
    if most < max_length:
        raise ConfigError("max_length", max_length, f"makes over {MAX_STRINGS:,} strings; use {most} or less")
    if max_context is not None and max_context < 1 + max_length:
        raise ConfigError("max_length", max_length, f"the model reads {max_context} tokens; use {max_context - 1}")


def categories(grammar: Grammar, max_length: int) -> dict[str, Tensor]:
    """(N,) bool for each category: which of all strings, in the order of ``log_probabilities``, fall into it."""
    strings = [all_strings(grammar.alphabet, length) for length in range(max_length + 1)]
    verdicts = grammar.judge(torch.cat([F.pad(s, (0, max_length - s.shape[1]), value=EOS) for s in strings]))
    no = torch.zeros_like(verdicts["grammatical"])
    rule_1, rule_2 = verdicts.get("rule_1", no), verdicts.get("rule_2", no)
    return {
        name: (rule_1 == kept_1) & (rule_2 == kept_2)
        for name, (kept_1, kept_2) in CATEGORIES.items()
        if kept_1 <= ("rule_1" in verdicts) and kept_2 <= ("rule_2" in verdicts)
    }


def probability_masses(
    model: LanguageModel, alphabet: str, max_length: int, masks: dict[str, Tensor]
) -> dict[str, float]:
    """Each category's probability mass, and the rest as ``longer``; mode and random state are left as they were."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        probabilities = log_probabilities(model.eval(), alphabet, max_length).exp().cpu()
    for module, mode in modes:
        module.training = mode
    masses = {name: probabilities[mask].sum().item() for name, mask in masks.items()}
    return {**masses, "longer": 1 - probabilities.sum().item()}


@torch.no_grad()
def log_probabilities(model: LanguageModel, alphabet: str, max_length: int) -> Tensor:
    """(N,) float64: ln P(string, EOS | SOS) of all strings up to that length; short ones first, in alphabet's order.

    The model reads the longest ones alone: all others begin one of them, so their outputs are among its outputs.
    """
    device = next((weight.device for weight in (*model.parameters(), *model.buffers())), None)
    longest = all_strings(alphabet, max_length).to(device)
    logits = torch.cat([model(rows) for rows in prepend_sos(longest).split(ROWS)])
    each = logits.double().log_softmax(1)  # (B, num_tokens, 1 + max_length)
    symbols = each[:, :, :-1].gather(1, longest[:, None]).squeeze(1)
    ended = F.pad(symbols.cumsum(1), (1, 0)) + each[:, EOS]  # (B, 1 + max_length): behind so many symbols
    # The strings that share a beginning stand together.
    return torch.cat([ended[:: len(alphabet) ** (max_length - t), t] for t in range(max_length + 1)])
