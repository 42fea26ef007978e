from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.grammars.exact.acceptor import in_order
from rule_extrapolation.grammars.exact.process import Process
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.grammars.letters import A, B, all_before, uniform_over
from rule_extrapolation.ops.words import runs


class AnBm(Grammar):
    """a^n b^m: a's before b's, any number of each.

    R2: every a comes before every b.

    Training words: n ~ U{1..max_length-3}; a^n b^(max_length-2-n).

    Example: "aab" is a word; "aba" is not.

    >>> grammar = AnBm(max_length=8)
    >>> verdicts = grammar.judge(grammar.encode(["aab", "aba"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_2': [True, False], 'grammatical': [True, False]}
    """

    name = "aNbM"
    level = "regular"
    alphabet = "ab"
    rules = {"rule_2": "a's before b's"}
    completion_rules = ("rule_2",)
    acceptors = {"rule_2": in_order("ab")}
    min_max_length = 4

    def rule_2(self, symbols: Tensor) -> Tensor:
        return all_before(symbols, A, B)

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return self.rule_2(symbols)

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        return self.words(torch.randint(1, self.max_length - 2, (num,), generator=generator))

    def words(self, n: Tensor) -> Tensor:
        return runs([A, B], torch.stack([n, self.max_length - 2 - n], 1), self.max_length)

    def make_process(self) -> Process:
        return uniform_over(self.words(torch.arange(1, self.max_length - 2)), len(self.alphabet))
