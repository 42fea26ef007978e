from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.grammars.exact.acceptor import in_order, tally
from rule_extrapolation.grammars.exact.process import Process
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.grammars.letters import A, B, all_before, length, uniform_over
from rule_extrapolation.ops.strings import count, frame
from rule_extrapolation.ops.words import runs


class AnBn(Grammar):
    """L3, a^n b^n: as many a's as b's, and a's before b's.

    R1: #a = #b.
    R2: every a comes before every b.
    R3: the length is even. It follows from R1.

    Training words: a^n b^n, once for every n in 1..⌊max_length/2⌋, or with n drawn uniformly from these.

    Example: "aabb" is a word; "abab" breaks R2 but keeps R1.

    >>> grammar = AnBn(max_length=8)
    >>> verdicts = grammar.judge(grammar.encode(["aabb", "abab"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True], 'rule_2': [True, False], 'rule_3': [True, True], 'grammatical': [True, False]}

    Args:
        all_sequences: train on every word once. If false, n is drawn for each training word.
        only_even: use even n only.
        only_odd: use odd n only.
    """

    name = "aNbN"
    label = "L3"
    level = "context-free"
    alphabet = "ab"
    rules = {"rule_1": "#a = #b", "rule_2": "a's before b's", "rule_3": "even length"}
    completion_rules = ("rule_2",)
    repairable_rules = ("rule_1",)
    acceptors = {"rule_1": tally(a=1, b=-1), "rule_2": in_order("ab"), "rule_3": tally(modulo=2, a=1, b=1)}
    min_max_length = 2

    def __init__(
        self,
        max_length: int,
        test_prompt_length: int | None = None,
        num_sos_prompts: int = 32,
        all_sequences: bool = True,
        only_even: bool = False,
        only_odd: bool = False,
    ):
        super().__init__(max_length, test_prompt_length, num_sos_prompts)
        if only_even and only_odd:
            raise ConfigError("only_even", True, "only_odd is true as well; set one of them to false")
        if only_even and max_length < 4:
            raise ConfigError("max_length", max_length, "the shortest word with an even n is aabb; use 4 or more")
        self.all_sequences, self.only_even, self.only_odd = all_sequences, only_even, only_odd
        self.n = torch.arange(2 if only_even else 1, max_length // 2 + 1, 2 if only_even or only_odd else 1)

    def rule_1(self, symbols: Tensor) -> Tensor:
        return count(symbols, A) == count(symbols, B)

    def rule_2(self, symbols: Tensor) -> Tensor:
        return all_before(symbols, A, B)

    def rule_3(self, symbols: Tensor) -> Tensor:
        return length(symbols) % 2 == 0

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return self.rule_2(symbols) & (count(symbols, B) <= count(symbols, A))

    def words(self, n: Tensor) -> Tensor:
        return runs([A, B], torch.stack([n, n], 1), self.max_length)

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        return self.words(self.n[torch.randint(len(self.n), (num,), generator=generator)])

    def all_words(self) -> Tensor | None:
        return frame(self.words(self.n)) if self.all_sequences else None

    def make_process(self) -> Process:
        return uniform_over(self.words(self.n), len(self.alphabet))
