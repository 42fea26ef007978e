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
from rule_extrapolation.grammars.judging import accuracies

NEGLIGIBLE = 1e-18
"""States of a lower probability are dropped."""
SAMPLES = 10_000
"""The minimum number of completions from which chance levels are estimated."""


def chance_levels(grammar: Grammar, budget: Callable[[Tensor], int]) -> dict[str, float]:
    """The expected accuracies of random completions of each prompt set, named as by ``judging.accuracies``.

    They are exact up to rounding if the language has an acceptor for each rule. Otherwise they are estimated from at
    least SAMPLES completions per set, so that the standard error of an accuracy p over all completions is at most
    sqrt(p (1 - p) / SAMPLES).

    Args:
        budget: maps (N, P) prompts to the maximum number of tokens in a completion.
    """
    levels: dict[str, float] = {}
    for name, prompts in grammar.prompts.items():
        if len(prompts):
            compute = exact_levels if grammar.has_acceptors else sampled_levels
            levels |= compute(grammar, prompts, budget(prompts), name)
    return levels


def exact_levels(grammar: Grammar, prompts: Tensor, budget: int, prefix: str) -> dict[str, float]:
    """Chance levels of one prompt set, computed with the language's acceptors."""
    texts = grammar.to_text(prompts[:, 1:])
    judged = {rule: (grammar.acceptors[rule], texts) for rule in grammar.rules}
    all_rules = both(*(grammar.acceptors[rule] for rule in grammar.rules))
    judged["grammatical"] = (grammar.acceptors.get("grammatical", all_rules), texts)
    start = len(texts[0]) if grammar.prompt_prefix is None else grammar.prompt_prefix
    for rule in grammar.completion_rules:
        judged[f"{rule}_completion"] = (grammar.acceptors[rule], [text[start:] for text in texts])
    for rule in grammar.repairable_rules:
        acceptor = grammar.acceptors[rule]
        judged[f"{rule}_repaired"] = (acceptor, [text for text in texts if not acceptor.keeps(text)])
    finished = 1 - (len(grammar.alphabet) / (1 + len(grammar.alphabet))) ** budget
    each = 1 / (1 + len(grammar.alphabet))
    both_levels = {"finished": (finished, finished), "empty": (each, each)}
    for name, (acceptor, beginnings) in judged.items():
        if beginnings:
            both_levels[name] = acceptance(acceptor, beginnings, grammar.alphabet, budget)
    _, word_and_finished = both_levels["grammatical"]
    both_levels["grammatical"] = (word_and_finished, word_and_finished)
    levels = {}
    for name, (over_all, and_finished) in both_levels.items():
        levels[f"{prefix}/{name}_accuracy"] = over_all
        levels[f"{prefix}/finished/{name}_accuracy"] = min(and_finished / finished, 1.0)
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
    return accuracies(grammar, torch.cat([prompts, tokens], 1), prompts.shape[1], prefix)
