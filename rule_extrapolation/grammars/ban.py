from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.grammars.grammar import PAD, Grammar, uniform_integers
from rule_extrapolation.grammars.letters import A, B, count


class BaN(Grammar):
    """L1: begins with b, and has an even number of a's.

    Training words: a length l ~ U{1..max_length}, a first b, k ~ U{0..(l-1)//2}, then 2k a's and l-1-2k b's shuffled.

    >>> grammar = BaN(max_length=8)
    >>> grammar.judge(grammar.encode(["baab", "bab", "aab"]))["grammatical"].tolist()
    [True, False, False]
    """

    name = "baN"
    label = "L1"
    level = "regular"
    alphabet = "ab"
    rules = {"rule_1": "even number of a's", "rule_2": "begins with b"}
    shortest_word = 1

    def rule_1(self, symbols: Tensor) -> Tensor:
        return count(symbols, A) % 2 == 0

    def rule_2(self, symbols: Tensor) -> Tensor:
        return (symbols[:, :1] == B).any(1)

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return (symbols[:, :1] != A).all(1)

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        lengths, num_as = sample_lengths_and_as(num, self.max_length, generator)
        position = torch.arange(self.max_length)
        # Behind the first b, the positions with the 2k smallest of independent random keys are a's.
        keys = torch.rand(num, self.max_length, generator=generator, dtype=torch.float64)
        keys[(position == 0) | (position >= lengths[:, None])] = torch.inf
        is_a = keys.argsort(1).argsort(1) < num_as[:, None]
        return torch.where(is_a, A, B).masked_fill(position >= lengths[:, None], PAD)


def sample_lengths_and_as(num: int, max_length: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Two (num,): l ~ U{1..max_length}, and an even number of a's, 2k with k ~ U{0..(l-1)//2}."""
    lengths = torch.randint(1, max_length + 1, (num,), generator=generator)
    return lengths, 2 * uniform_integers((lengths - 1) // 2, generator)
