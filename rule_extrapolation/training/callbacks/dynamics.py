"""The probability mass that a model assigns to all short strings during training (Mészáros et al. 2024, figure 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError, check_positive
from rule_extrapolation.core.tokens import EOS
from rule_extrapolation.grammars.grammar import Grammar, all_strings, prepend_sos
from rule_extrapolation.models.language_model import LanguageModel

MAX_STRINGS = 20_000
ROWS = 4096
"""The number of strings that a model reads at once, which bounds the memory."""


class Dynamics(Callback):
    """Log the probability mass of all strings of up to ``max_length`` symbols, by the rules that they keep.

    The categories are about the language's first two rules. For R1 and R2 they are ``Dynamics/rules_1_and_2``,
    ``rule_1_only``, ``rule_2_only`` and ``neither``. Other rules are named in the same way, such as
    ``even_length_and_nested``; a language with one rule has ``<rule>_only`` and ``neither``. ``Dynamics/longer`` is the
    rest: longer strings, and sequences with SOS or PAD before EOS, which are no strings. All of them sum to 1.

    A figure at step t is for the weights after t steps: before training (0), every ``every_n_steps`` steps, and at the
    end. A resumed run does not log its first step again, and a model with nothing to train is logged once.

    Args:
        grammar, model: those of the run; the program passes them.
        every_n_steps: training steps between two figures.
        max_length: the greatest length of strings, in symbols.

    Raises:
        ConfigError: a number is below 1, there are too many strings, or they are too long for the model.
        ValueError: the task is not a language, or the model is not causal.
    """

    def __init__(self, grammar: Grammar, model: LanguageModel, every_n_steps: int = 10, max_length: int = 8):
        check_positive(every_n_steps=every_n_steps, max_length=max_length)
        if grammar.kind != "language":
            raise ValueError(f"needs a language: {grammar.name} has no rules to sort strings by")
        check_strings(grammar.alphabet, max_length, model.max_context)
        if not model.causal:
            raise ValueError("needs a causal model: one that sees the future does not assign probabilities to strings")
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
        if trainer.global_step == self.logged_step:  # one of several batches in a step, or the end of training
            return
        self.logged_step = trainer.global_step
        masses = probability_masses(pl_module.model, self.alphabet, self.max_length, self.masks)
        for logger in trainer.loggers:
            logger.log_metrics({f"Dynamics/{name}": mass for name, mass in masses.items()}, trainer.global_step)


def check_strings(alphabet: str, max_length: int, max_context: int | None) -> None:
    """Raise a ConfigError if there are too many strings, or if they exceed the model's context, SOS included."""
    most, strings = 0, 1
    while most < max_length and strings + len(alphabet) ** (most + 1) <= MAX_STRINGS:
        most += 1
        strings += len(alphabet) ** most
    if most < max_length:
        raise ConfigError("max_length", max_length, f"makes over {MAX_STRINGS:,} strings; use {most} or less")
    if max_context is not None and max_context < 1 + max_length:
        raise ConfigError("max_length", max_length, f"the model reads {max_context} tokens; use {max_context - 1}")


def categories(grammar: Grammar, max_length: int) -> dict[str, Tensor]:
    """For each category, a mask (N,) of the strings in it, in the order of ``log_probabilities``."""
    strings = [all_strings(grammar.alphabet, length) for length in range(max_length + 1)]
    verdicts = grammar.judge(torch.cat([F.pad(s, (0, max_length - s.shape[1]), value=EOS) for s in strings]))
    kept = {rule: verdicts[rule] for rule in list(grammar.rules)[:2]}
    neither = ~torch.stack(list(kept.values())).any(0)
    if len(kept) == 1:
        [(rule, keeps)] = kept.items()
        return {f"{rule}_only": keeps, "neither": neither}
    (first, keeps_first), (second, keeps_second) = kept.items()
    both = "rules_1_and_2" if (first, second) == ("rule_1", "rule_2") else f"{first}_and_{second}"
    return {
        both: keeps_first & keeps_second,
        f"{first}_only": keeps_first & ~keeps_second,
        f"{second}_only": keeps_second & ~keeps_first,
        "neither": neither,
    }


def probability_masses(
    model: LanguageModel, alphabet: str, max_length: int, masks: dict[str, Tensor]
) -> dict[str, float]:
    """Each category's probability mass, and the rest as ``longer``. Restores the model's mode and random state."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        probabilities = log_probabilities(model.eval(), alphabet, max_length).exp().cpu()
    for module, mode in modes:
        module.training = mode
    masses = {name: probabilities[mask].sum().item() for name, mask in masks.items()}
    return {**masses, "longer": 1 - probabilities.sum().item()}


@torch.no_grad()
def log_probabilities(model: LanguageModel, alphabet: str, max_length: int) -> Tensor:
    """ln P(string, EOS | SOS) of all strings up to that length, (N,) float64, by length and then alphabetically.

    The model reads only the longest strings: every other string is a prefix of one of them.
    """
    device = next((weight.device for weight in (*model.parameters(), *model.buffers())), None)
    longest = all_strings(alphabet, max_length).to(device)
    at_once = ROWS if model.rows_are_independent else 1
    logits = torch.cat([model(rows) for rows in prepend_sos(longest).split(at_once)])
    each = logits.double().log_softmax(1)  # (B, num_tokens, 1 + max_length)
    symbols = each[:, :, :-1].gather(1, longest[:, None]).squeeze(1)
    ended = F.pad(symbols.cumsum(1), (1, 0)) + each[:, EOS]  # (B, 1 + max_length): EOS after t symbols
    # Strings with the same prefix of t symbols are adjacent, so this takes each prefix once.
    return torch.cat([ended[:: len(alphabet) ** (max_length - t), t] for t in range(max_length + 1)])
