"""What a model that knows nothing scores."""

from __future__ import annotations

import torch

from rule_extrapolation.grammars.grammar import EOS, FIRST_SYMBOL, Grammar
from rule_extrapolation.seeding import generator
from rule_extrapolation.training.metrics import accuracies, judge_completions

# Without EOS among 300 tokens of two letters: (2/3)^300 < 1e-52; of four brackets, (4/5)^300 < 1e-29.
LONGEST = 300


def chance_levels(grammar: Grammar, max_new_tokens: int, samples: int = 10_000, seed: int = 0) -> dict[str, float]:
    """The accuracies of completions whose tokens are drawn evenly from the alphabet and EOS, estimated from samples.

    Each prompt is completed equally often, at least ``samples`` times a set together, so that the standard error of
    an accuracy p over all completions is at most sqrt(p (1 - p) / samples).
    """
    levels, length = {}, min(max_new_tokens, LONGEST)
    for name, prompts in grammar.prompts.items():
        if len(prompts):
            prompts = prompts.repeat(-(-samples // len(prompts)), 1)
            choice = torch.randint(1 + len(grammar.alphabet), (len(prompts), length), generator=generator(seed))
            tokens = torch.where(choice == 0, EOS, choice - 1 + FIRST_SYMBOL)
            levels |= accuracies(judge_completions(grammar, torch.cat([prompts, tokens], 1), prompts.shape[1]), name)
    return levels
