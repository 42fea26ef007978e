from __future__ import annotations

import math

import torch
from torch import Tensor

from rule_extrapolation.grammars.exact.acceptor import tally
from rule_extrapolation.grammars.exact.process import Automaton
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.grammars.letters import A, B, log_num_orders, shuffled
from rule_extrapolation.ops.strings import count


class AbN(Grammar):
    """As many a's as b's, in any order.

    R1: #a = #b.
    Every string is a prefix of a word, so there are no OOD prompts.

    Training words: n ~ U{1..⌊max_length/2⌋}; n a's and n b's in uniformly random order.

    Example: "abba" is a word; "aab" is not.

    >>> grammar = AbN(max_length=8)
    >>> verdicts = grammar.judge(grammar.encode(["abba", "aab"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, False], 'grammatical': [True, False]}
    """

    name = "abN"
    level = "context-free"
    alphabet = "ab"
    rules = {"rule_1": "#a = #b"}
    repairable_rules = ("rule_1",)
    acceptors = {"rule_1": tally(a=1, b=-1)}
    min_max_length = 2

    def rule_1(self, symbols: Tensor) -> Tensor:
        return count(symbols, A) == count(symbols, B)

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return torch.ones(len(symbols), dtype=torch.bool, device=symbols.device)

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        n = torch.randint(1, self.max_length // 2 + 1, (num,), generator=generator)
        return shuffled((A, B), n, 2 * n, self.max_length, generator)

    def make_process(self) -> Automaton:
        n = torch.arange(1, self.max_length // 2 + 1)
        log_probability = torch.full((self.max_length + 1,) * 2, -torch.inf, dtype=torch.float64)
        log_probability[n, n] = -math.log(len(n)) - log_num_orders(n, n)
        return Automaton.from_counts(log_probability)
