from __future__ import annotations

import math

import torch
from torch import Tensor

from rule_extrapolation.grammars.exact.acceptor import begins_with, tally
from rule_extrapolation.grammars.exact.process import Automaton
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.grammars.letters import A, B, log_num_orders, sample_lengths_and_as, shuffled
from rule_extrapolation.ops.strings import count


class BaN(Grammar):
    """L1, (ba)^N: strings that begin with b and contain an even number of a's.

    R1: #a is even.
    R2: the first symbol is b.

    Training words: a length l ~ U{1..max_length} and k ~ U{0..⌊(l-1)/2⌋}; a b, then 2k a's and l-1-2k b's in uniformly
    random order.

    Example: "baab" is a word; "aab" breaks R2 but keeps R1.

    >>> grammar = BaN(max_length=8)
    >>> verdicts = grammar.judge(grammar.encode(["baab", "aab"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True], 'rule_2': [True, False], 'grammatical': [True, False]}
    """

    name = "baN"
    label = "L1"
    level = "regular"
    alphabet = "ab"
    rules = {"rule_1": "even number of a's", "rule_2": "begins with b"}
    completion_rules = ("rule_2",)
    repairable_rules = ("rule_1",)
    acceptors = {"rule_1": tally(modulo=2, a=1), "rule_2": begins_with("b")}
    min_max_length = 1

    def rule_1(self, symbols: Tensor) -> Tensor:
        return count(symbols, A) % 2 == 0

    def rule_2(self, symbols: Tensor) -> Tensor:
        return (symbols[:, :1] == B).any(1)

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return (symbols[:, :1] != A).all(1)

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        lengths, num_as = sample_lengths_and_as(num, self.max_length, generator)
        first = torch.full((num, 1), B, dtype=torch.int8)
        return torch.cat([first, shuffled((A, B), num_as, lengths - 1, self.max_length - 1, generator)], 1)

    def make_process(self) -> Automaton:
        num_as, num_bs = torch.meshgrid(torch.arange(self.max_length), torch.arange(self.max_length), indexing="ij")
        num_others = num_as + num_bs  # symbols after the first b
        log_num_choices = (num_others // 2 + 1).double().log()  # of k
        log_probability = -math.log(self.max_length) - log_num_choices - log_num_orders(num_as, num_bs)
        is_word = (num_as % 2 == 0) & (num_others < self.max_length)
        return Automaton.from_counts(log_probability.where(is_word, -torch.inf), first=1)
