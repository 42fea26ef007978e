"""Chance levels: the accuracies of a model that draws each token uniformly from the alphabet and EOS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from rule_extrapolation.core.random import generator
from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL
from rule_extrapolation.grammars.exact.acceptor import Acceptor, State, both
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.grammars.judging import accuracies, judge_completions

NEGLIGIBLE = 1e-18
"""States of a lower probability are dropped."""
SAMPLES = 10_000
"""The minimum number of completions from which chance levels are estimated."""


def chance_levels(grammar: Grammar, budget: Callable[[Tensor], int]) -> dict[str, float]:
    """The expected accuracies of random completions of each prompt set, named as by ``judging.accuracies``.

    They are exact up to rounding if the language has acceptors. Otherwise they are estimated from at least SAMPLES
    completions per set, so that the standard error of an accuracy p over all completions is at most
    sqrt(p (1 - p) / SAMPLES).

    Args:
        budget: maps (N, P) prompts to the maximum number of tokens in a completion.
    """
    levels: dict[str, float] = {}
    for name, prompts in grammar.prompts.items():
        if len(prompts):
            compute = exact_levels if grammar.acceptors else sampled_levels
            levels |= compute(grammar, prompts, budget(prompts), name)
    return levels


def exact_levels(grammar: Grammar, prompts: Tensor, budget: int, prefix: str) -> dict[str, float]:
    """Chance levels of one prompt set, computed with the language's acceptors."""
    texts = grammar.to_text(prompts[:, 1:])
    judged = {rule: (grammar.acceptors[rule], texts) for rule in grammar.rules}
    all_rules = both(*(grammar.acceptors[rule] for rule in grammar.rules))
    judged["grammatical"] = (grammar.acceptors.get("grammatical", all_rules), texts)
    if "rule_2" in grammar.rules:
        start = len(texts[0]) if grammar.prompt_prefix is None else grammar.prompt_prefix
        judged["rule_2_completion"] = (grammar.acceptors["rule_2"], [text[start:] for text in texts])
    finished = 1 - (len(grammar.alphabet) / (1 + len(grammar.alphabet))) ** budget
    levels = {f"{prefix}/finished_accuracy": finished, f"{prefix}/finished/finished_accuracy": 1.0}
    for name, (acceptor, beginnings) in judged.items():
        accepted, accepted_and_finished = acceptance(acceptor, beginnings, grammar.alphabet, budget)
        levels[f"{prefix}/{name}_accuracy"] = accepted
        levels[f"{prefix}/finished/{name}_accuracy"] = min(accepted_and_finished / finished, 1.0)
    return levels


def acceptance(acceptor: Acceptor, beginnings: list[str], alphabet: str, budget: int) -> tuple[float, float]:
    """Probabilities that a random completion is accepted, and that it is accepted and finished.

    The distribution over the acceptor's states is propagated symbol by symbol.

    Args:
        beginnings: the strings to complete, each equally probable.
    """
    states: dict[State, float] = defaultdict(float)
    for string in beginnings:
        states[merged(acceptor, acceptor.after(string))] += 1 / len(beginnings)
    each = 1 / (1 + len(alphabet))
    finished = 0.0
    for _ in range(budget):
        finished += each * accepted_mass(acceptor, states)
        after: dict[State, float] = defaultdict(float)
        for state, probability in states.items():
            if state is not None and probability > NEGLIGIBLE:
                for symbol in alphabet:
                    after[merged(acceptor, acceptor.read(state, symbol))] += each * probability
        states = after
    # The rounded sum may exceed 1.
    return min(finished + accepted_mass(acceptor, states), 1.0), finished


def merged(acceptor: Acceptor, state: State) -> State:
    return None if state is None else acceptor.merge_equivalent(state)


def accepted_mass(acceptor: Acceptor, states: dict[State, float]) -> float:
    return sum(p for state, p in states.items() if state is not None and acceptor.accepts(state))


def sampled_levels(grammar: Grammar, prompts: Tensor, budget: int, prefix: str, seed: int = 0) -> dict[str, float]:
    """Chance levels of one prompt set, estimated from random completions."""
    prompts = prompts.repeat(-(-SAMPLES // len(prompts)), 1)
    choice = torch.randint(1 + len(grammar.alphabet), (len(prompts), budget), generator=generator(seed))
    tokens = torch.where(choice == 0, EOS, choice - 1 + FIRST_SYMBOL)
    return accuracies(judge_completions(grammar, torch.cat([prompts, tokens], 1), prompts.shape[1]), prefix)
