"""Training on OOD prompts: the two controls of the paper (Mészáros et al. 2024, arXiv 2409.13728)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError, check_choice, check_positive, check_seed
from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.data.grammar_data import TensorBatches
from rule_extrapolation.grammars.exact.completion import shortest_completion
from rule_extrapolation.grammars.grammar import Grammar, prepend_sos
from rule_extrapolation.grammars.titles import title
from rule_extrapolation.models.language_model import LanguageModel


class OODTraining:
    """The loss on completions of the language's OOD prompts, which is added to the loss on its words.

    Each prompt gets the shortest completion that keeps a rule (or breaks it), whether or not it keeps the others
    (``shortest_completion``). A prompt without such a completion is omitted. As in the paper, all OOD prompts are
    trained on: accuracies on them are accuracies on training data, and say nothing about extrapolation.

    Args:
        grammar, model: those of the run; the program passes them.
        verdict: whether the completions keep or break the rule.
        rule: the name of the rule, by default R1.
        weight: the factor of this loss in the objective, in which the loss on words has the factor 1.
        batch_size: prompts per step, or all of them if there are fewer.
        seed: determines the order of the prompts, which is a new one on each pass.

    Raises:
        ConfigError: the language has no such rule, no acceptor for it or no OOD prompt with such a completion; or the
            model has nothing to train, or its context is too short.
    """

    def __init__(
        self,
        grammar: Grammar,
        model: LanguageModel,
        verdict: Literal["kept", "broken"],
        rule: str = "rule_1",
        weight: float = 1.0,
        batch_size: int = 128,
        seed: int = 0,
    ):
        check_choice(["kept", "broken"], verdict=verdict)
        check_positive(weight=weight, batch_size=batch_size)
        check_seed(seed=seed)
        if not model.num_parameters:
            raise ConfigError("verdict", verdict, "the model has nothing to train; use training=standard")
        rows, self.prompt_length = completed_prompts(grammar, verdict, rule)
        longest = rows.shape[1] - 1  # the last token is a target, but not read
        if model.max_context is not None and model.max_context < longest:
            raise ConfigError(
                "max_length",
                grammar.max_length,
                f"completed OOD prompts take {longest} tokens, and the model reads {model.max_context}; change one",
            )
        self.verdict, self.rule, self.weight = verdict, rule, weight
        self.batches = TensorBatches(rows, batch_size, shuffle_seed=seed)
        self.endless = self.endless_batches()

    @property
    def caveat(self) -> str:
        return f"trained on the OOD prompts of {self.prompt_length - 1} symbols, {title(self.rule)} {self.verdict}"

    def endless_batches(self) -> Iterator[Tensor]:
        while True:
            yield from self.batches

    def next_batch(self) -> Tensor:
        """(B, T) rows, each of a prompt and its completion."""
        return next(self.endless)

    def loss(self, model: LanguageModel, rows: Tensor) -> Tensor:
        """The mean cross-entropy of the completions' symbols and EOS, in nats per token."""
        prompts, completions = rows[:, : self.prompt_length], rows[:, self.prompt_length :]
        return F.cross_entropy(model.continuation_logits(prompts, completions), completions, ignore_index=PAD)

    def count(self, rows: Tensor) -> Tensor:
        """The number of tokens that the loss is a mean over."""
        return (rows[:, self.prompt_length :] != PAD).sum()

    def state_dict(self) -> dict[str, int]:
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches.load_state_dict(state)
        self.endless = self.endless_batches()


def completed_prompts(grammar: Grammar, verdict: Literal["kept", "broken"], rule: str = "rule_1") -> tuple[Tensor, int]:
    """The OOD prompts, each with the shortest completion that keeps or breaks the rule.

    Returns:
        (N, T) rows of SOS, prompt, completion and EOS, padded to the longest; and the prompts' length in tokens, SOS
        included.

    Raises:
        ConfigError: no OOD prompt has such a completion.
    """
    if rule not in grammar.rules or rule not in grammar.acceptors:
        raise ConfigError("rule", rule, f"{grammar.name} has no {title(rule)} with an acceptor; choose another grammar")
    acceptor = grammar.acceptors[rule]
    prompts = grammar.prompts["OOD"]
    texts = grammar.to_text(prompts[:, 1:])
    states = {text: acceptor.after(text) for text in texts}
    completions = {
        state: shortest_completion(acceptor, state, grammar.alphabet, verdict == "kept")
        for state in set(states.values())
    }
    completed = [text + completions[states[text]] for text in texts if completions[states[text]] is not None]
    if not completed:
        if texts:
            verb = "keeps" if verdict == "kept" else "breaks"
            reason = f"no completion of an OOD prompt of {grammar.name} {verb} {title(rule)}"
        else:
            reason = f"{grammar.name} has no OOD prompts"
        raise ConfigError("verdict", verdict, f"{reason}; choose another grammar")
    return prepend_sos(grammar.encode(completed)), prompts.shape[1]
