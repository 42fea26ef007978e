"""What a model scores that knows nothing: each token is drawn evenly from the alphabet and EOS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from rule_extrapolation.core.random import generator
from rule_extrapolation.grammars.exact.acceptor import Acceptor, State, both
from rule_extrapolation.grammars.grammar import EOS, FIRST_SYMBOL, Grammar
from rule_extrapolation.grammars.judging import accuracies, judge_completions

NEGLIGIBLE = 1e-18
SAMPLES = 10_000


def chance_levels(grammar: Grammar, budget: Callable[[Tensor], int]) -> dict[str, float]:
    """The accuracies of completions by chance, for each prompt set, by the names of ``metrics.accuracies``.

    Exact, up to rounding, where the language has acceptors; else estimated from at least SAMPLES completions a set,
    with a standard error of sqrt(p (1 - p) / SAMPLES) at most for an accuracy p over all completions.

    Args:
        budget: how many tokens are drawn at most behind prompts (N, P), if EOS is not among them.
    """
    levels: dict[str, float] = {}
    for name, prompts in grammar.prompts.items():
        if len(prompts):
            compute = exact_levels if grammar.acceptors else sampled_levels
            levels |= compute(grammar, prompts, budget(prompts), name)
    return levels


def exact_levels(grammar: Grammar, prompts: Tensor, budget: int, prefix: str) -> dict[str, float]:
    texts = grammar.to_text(prompts[:, 1:])
    acceptors = {rule: (grammar.acceptors[rule], texts) for rule in grammar.rules}
    every_rule = both(*(grammar.acceptors[rule] for rule in grammar.rules))
    acceptors["grammatical"] = (grammar.acceptors.get("grammatical", every_rule), texts)
    if "rule_2" in grammar.rules:
        behind = len(texts[0]) if grammar.prompt_prefix is None else grammar.prompt_prefix
        acceptors["rule_2_completion"] = (grammar.acceptors["rule_2"], [text[behind:] for text in texts])
    finished = 1 - (len(grammar.alphabet) / (1 + len(grammar.alphabet))) ** budget
    levels = {f"{prefix}/finished_accuracy": finished, f"{prefix}/finished/finished_accuracy": 1.0}
    for name, (acceptor, begun) in acceptors.items():
        kept, kept_and_finished = keeps(acceptor, begun, grammar.alphabet, budget)
        levels[f"{prefix}/{name}_accuracy"] = kept
        levels[f"{prefix}/finished/{name}_accuracy"] = min(kept_and_finished / finished, 1.0)
    return levels


def keeps(acceptor: Acceptor, begun: list[str], alphabet: str, budget: int) -> tuple[float, float]:
    """How probably strings that are begun so are accepted in the end; and accepted and finished.

    The probability of each state, symbol by symbol.
    """
    states: dict[State, float] = defaultdict(float)
    for string in begun:
        states[lumped(acceptor, acceptor.after(string))] += 1 / len(begun)
    each = 1 / (1 + len(alphabet))
    finished = 0.0
    for _ in range(budget):
        finished += each * accepted(acceptor, states)
        after: dict[State, float] = defaultdict(float)
        for state, probability in states.items():
            if state is not None and probability > NEGLIGIBLE:
                for symbol in alphabet:
                    after[lumped(acceptor, acceptor.read(state, symbol))] += each * probability
        states = after
    # A sum of rounded numbers may come out above 1.
    return min(finished + accepted(acceptor, states), 1.0), finished


def lumped(acceptor: Acceptor, state: State) -> State:
    return None if state is None else acceptor.merge_equivalent(state)


def accepted(acceptor: Acceptor, states: dict[State, float]) -> float:
    return sum(p for state, p in states.items() if state is not None and acceptor.accepts(state))


def sampled_levels(grammar: Grammar, prompts: Tensor, budget: int, prefix: str, seed: int = 0) -> dict[str, float]:
    prompts = prompts.repeat(-(-SAMPLES // len(prompts)), 1)
    choice = torch.randint(1 + len(grammar.alphabet), (len(prompts), budget), generator=generator(seed))
    tokens = torch.where(choice == 0, EOS, choice - 1 + FIRST_SYMBOL)
    return accuracies(judge_completions(grammar, torch.cat([prompts, tokens], 1), prompts.shape[1]), prefix)
