"""What a model that knows nothing scores."""

from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.grammars.grammar import EOS, FIRST_SYMBOL, Grammar
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.training.decoding import Sample
from rule_extrapolation.training.metrics import accuracies, judge_completions


class Uniform(LanguageModel):
    """Every symbol of the alphabet and EOS, evenly, whatever came before."""

    def __init__(self, num_tokens: int):
        super().__init__()
        logits = torch.full((num_tokens,), -torch.inf)
        logits[EOS] = 0
        logits[FIRST_SYMBOL:] = 0
        self.register_buffer("logits", logits)

    def init_state(self, batch_size: int) -> None:
        return None

    def advance(self, tokens: Tensor, state: None) -> tuple[Tensor, None]:
        return self.logits.expand(*tokens.shape, -1), None


def chance_levels(grammar: Grammar, max_new_tokens: int, samples: int = 10_000, seed: int = 0) -> dict[str, float]:
    """The accuracies of uniformly random completions of each prompt set, estimated from samples.

    Each prompt is completed equally often, at least ``samples`` times a set together, so that the standard error of
    an accuracy p over all completions is sqrt(p (1 - p) / samples) at most.
    """
    model, decoder = Uniform(grammar.num_tokens), Sample(max_new_tokens, seed=seed)
    levels = {}
    for name, prompts in grammar.prompts.items():
        if len(prompts):
            repeated = prompts.repeat(-(-samples // len(prompts)), 1)
            completions = decoder(model, repeated)
            levels |= accuracies(judge_completions(grammar, completions, prompts.shape[1]), name)
    return levels
