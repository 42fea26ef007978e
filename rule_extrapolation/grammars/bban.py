from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.grammars.exact.acceptor import Acceptor, in_order
from rule_extrapolation.grammars.exact.process import Automaton
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.grammars.letters import A, B, all_before, length, sample_lengths_and_as
from rule_extrapolation.ops.strings import last
from rule_extrapolation.ops.words import runs


class BbaN(Grammar):
    """L2, b^n a^(2m) with n >= 1: b's before a's, with an even number of a's.

    R1: the number of a's after the last b is even.
    R2: every b comes before every a, and there is at least one b.

    Training words: a length l ~ U{1..max_length} and k ~ U{0..⌊(l-1)/2⌋}; b^(l-2k) a^(2k).

    Example: "bbaa" is a word; "abaa" breaks R2 but keeps R1.

    >>> grammar = BbaN(max_length=8)
    >>> verdicts = grammar.judge(grammar.encode(["bbaa", "abaa"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True], 'rule_2': [True, False], 'grammatical': [True, False]}
    """

    name = "bbaN"
    label = "L2"
    level = "regular"
    alphabet = "ab"
    rules = {"rule_1": "even number of a's after the last b", "rule_2": "b's before a's, at least one b"}
    completion_rules = ("rule_2",)
    repairable_rules = ("rule_1",)
    acceptors = {
        "rule_1": Acceptor(0, lambda odd, symbol: 1 - odd if symbol == "a" else 0, lambda odd: not odd),
        "rule_2": in_order("ba", needs_first=True),
    }
    min_max_length = 1

    def rule_1(self, symbols: Tensor) -> Tensor:
        num_final_as = length(symbols) - 1 - last(symbols, B)
        return num_final_as % 2 == 0

    def rule_2(self, symbols: Tensor) -> Tensor:
        return all_before(symbols, B, A) & (last(symbols, B) >= 0)

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return (length(symbols) == 0) | self.rule_2(symbols)

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        lengths, num_as = sample_lengths_and_as(num, self.max_length, generator)
        return runs([B, A], torch.stack([lengths - num_as, num_as], 1), self.max_length)

    def make_process(self) -> Automaton:
        """Nodes of the automaton are the prefixes b^i a^j, ordered by length t = i + j and then by j = 0..t-1."""
        sizes = torch.arange(1, self.max_length + 1)
        t, starts = sizes.repeat_interleave(sizes), 1 + sizes.cumsum(0) - sizes
        j = torch.arange(len(t)) - (starts - 1).repeat_interleave(sizes)
        longer = torch.where(t < self.max_length, 1 + t * (t + 1) // 2, -1)
        children = torch.stack([torch.where(longer > 0, longer + j + 1, -1), torch.where(j == 0, longer, -1)], 1)
        log_end = -math.log(self.max_length) - ((t - 1) // 2 + 1).double().log()
        log_end = log_end.where(j % 2 == 0, -torch.inf)
        children = torch.cat([torch.tensor([[-1, 1]]), children])  # the empty prefix, which must be followed by b
        log_end = F.pad(log_end, (1, 0), value=-torch.inf)
        return Automaton(children, log_end, [1, *sizes.tolist()])

    def id_and_ood_prompts(self) -> tuple[Tensor, Tensor]:
        """ID: b^i a^(n-i) for i in 1..n-1. OOD: a b^i a^(n-1-i) for i in 1..n-2."""
        n = self.test_prompt_length
        i, j = torch.arange(1, n), torch.arange(1, max(n - 1, 1))
        return (
            runs([B, A], torch.stack([i, n - i], 1), n),
            runs([A, B, A], torch.stack([torch.ones_like(j), j, n - 1 - j], 1), n),
        )
