"""Training on OOD prompts, the paper's two controls (Mészáros et al. 2024, arXiv 2409.13728)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError, check_choice, check_positive, check_seed
from rule_extrapolation.data.grammar_data import TensorBatches
from rule_extrapolation.grammars.exact.completion import shortest_completion
from rule_extrapolation.grammars.grammar import PAD, Grammar, prepend_sos
from rule_extrapolation.models.language_model import LanguageModel


class OODTraining:
    """The loss on completions of the language's OOD prompts, to be added to that on its words.

    Each prompt is completed as shortly as R1 can be kept or broken, whatever becomes of R2 (``shortest_completion``);
    a prompt with which R1 cannot be kept is left out. As published, all OOD prompts are trained on: accuracies on them
    are then those of training data, and say nothing of extrapolation.

    Args:
        grammar, model: those of the run; the program gives them.
        rule_1: whether the completions keep R1 or break it.
        weight: of the loss on them, beside 1 for that on words.
        batch_size: prompts a step; all of them if there are fewer.
        seed: of the order they come in, a new one on each pass.

    Raises:
        ConfigError: the language has no R1, no acceptor for it or no OOD prompt to be completed so; the model has
            nothing to train or reads too few tokens.
    """

    def __init__(
        self,
        grammar: Grammar,
        model: LanguageModel,
        rule_1: Literal["kept", "broken"],
        weight: float = 1.0,
        batch_size: int = 128,
        seed: int = 0,
    ):
        check_choice(["kept", "broken"], rule_1=rule_1)
        check_positive(weight=weight, batch_size=batch_size)
        check_seed(seed=seed)
        if not model.num_parameters:
            raise ConfigError("rule_1", rule_1, "the model has nothing to train; use training=standard")
        rows, self.prompt_length = completed_prompts(grammar, rule_1)
        longest = rows.shape[1] - 1  # the last token is only written
        if model.max_context is not None and model.max_context < longest:
            raise ConfigError(
                "max_length",
                grammar.max_length,
                f"completed OOD prompts take {longest} tokens, and the model reads {model.max_context}; change one",
            )
        self.rule_1, self.weight = rule_1, weight
        self.batches = TensorBatches(rows, batch_size, shuffle_seed=seed)
        self.endless = self.repeated()

    @property
    def caveat(self) -> str:
        return f"trained on the OOD prompts of {self.prompt_length - 1} symbols, R1 {self.rule_1}"

    def repeated(self) -> Iterator[Tensor]:
        while True:
            yield from self.batches

    def next_batch(self) -> Tensor:
        """(B, T): rows of prompt and completion."""
        return next(self.endless)

    def loss(self, model: LanguageModel, rows: Tensor) -> Tensor:
        """Mean cross-entropy of the completions' symbols and EOS, in nats; no other token of the rows counts."""
        prompts, completions = rows[:, : self.prompt_length], rows[:, self.prompt_length :]
        return F.cross_entropy(model.continuation(prompts, completions), completions, ignore_index=PAD)

    def count(self, rows: Tensor) -> Tensor:
        """How many tokens the loss is a mean over."""
        return (rows[:, self.prompt_length :] != PAD).sum()

    def state_dict(self) -> dict[str, int]:
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches.load_state_dict(state)
        self.endless = self.repeated()


def completed_prompts(grammar: Grammar, rule_1: Literal["kept", "broken"]) -> tuple[Tensor, int]:
    """The OOD prompts whose completion keeps or breaks R1.

    Returns:
        (N, T) rows of SOS, prompt, completion, EOS and PAD, as wide as the longest needs; and the prompts' length in
        tokens, SOS included.

    Raises:
        ConfigError: there are none.
    """
    if "rule_1" not in grammar.acceptors:
        raise ConfigError("rule_1", rule_1, f"{grammar.name} has no R1 with an acceptor; choose another grammar")
    acceptor = grammar.acceptors["rule_1"]
    prompts = grammar.prompts["OOD"]
    texts = grammar.to_text(prompts[:, 1:])
    states = {text: acceptor.after(text) for text in texts}
    completions = {
        state: shortest_completion(acceptor, state, grammar.alphabet, rule_1 == "kept")
        for state in set(states.values())
    }
    completed = [text + completions[states[text]] for text in texts if completions[states[text]] is not None]
    if not completed:
        why = f"no OOD prompt of {grammar.name} can be completed so" if texts else f"{grammar.name} has no OOD prompts"
        raise ConfigError("rule_1", rule_1, f"{why}; choose another grammar")
    return prepend_sos(grammar.encode(completed)), prompts.shape[1]
