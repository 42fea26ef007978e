from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.grammars.exact.acceptor import in_order, tally
from rule_extrapolation.grammars.exact.process import Process
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.grammars.letters import A, B, C, all_before, uniform_over
from rule_extrapolation.ops.strings import count, frame
from rule_extrapolation.ops.words import runs


class AnBnCn(Grammar):
    """L4, a^n b^n c^n: as many a's as b's as c's, in this order.

    R1: #a = #b = #c.
    R2: every a comes before every b, and every b before every c.

    Training words: a^n b^n c^n, once for every n in 1..⌊max_length/3⌋, or with n drawn uniformly from these.

    Example: "aabbcc" is a word; "abcabc" breaks R2 but keeps R1.

    >>> grammar = AnBnCn(max_length=9)
    >>> verdicts = grammar.judge(grammar.encode(["aabbcc", "abcabc"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True], 'rule_2': [True, False], 'grammatical': [True, False]}

    Args:
        all_sequences: train on every word once. If false, n is drawn for each training word.
    """

    name = "aNbNcN"
    label = "L4"
    level = "context-sensitive"
    alphabet = "abc"
    rules = {"rule_1": "#a = #b = #c", "rule_2": "a's before b's before c's"}
    completion_rules = ("rule_2",)
    repairable_rules = ("rule_1",)
    acceptors = {"rule_1": tally(a=(1, 0), b=(-1, 1), c=(0, -1)), "rule_2": in_order("abc")}
    min_max_length = 3
    default_prompt_length = 5

    def __init__(
        self,
        max_length: int,
        test_prompt_length: int | None = None,
        num_sos_prompts: int = 32,
        all_sequences: bool = True,
    ):
        super().__init__(max_length, test_prompt_length, num_sos_prompts)
        self.all_sequences = all_sequences

    def rule_1(self, symbols: Tensor) -> Tensor:
        a, b, c = (count(symbols, symbol) for symbol in (A, B, C))
        return (a == b) & (b == c)

    def rule_2(self, symbols: Tensor) -> Tensor:
        return all_before(symbols, A, B, C)

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        a, b, c = (count(symbols, symbol) for symbol in (A, B, C))
        return self.rule_2(symbols) & (b <= a) & (c <= b) & ((c == 0) | (a == b))

    def words(self, n: Tensor) -> Tensor:
        return runs([A, B, C], torch.stack([n, n, n], 1), self.max_length)

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        return self.words(torch.randint(1, self.max_length // 3 + 1, (num,), generator=generator))

    def all_words(self) -> Tensor | None:
        return frame(self.words(torch.arange(1, self.max_length // 3 + 1))) if self.all_sequences else None

    def make_process(self) -> Process:
        return uniform_over(self.words(torch.arange(1, self.max_length // 3 + 1)), len(self.alphabet))
