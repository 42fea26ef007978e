from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.grammars.exact.acceptor import begins_with
from rule_extrapolation.grammars.exact.half_process import HalfProcess
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.grammars.letters import A, length


class Halves(Grammar):
    """Words that begin with a, and whose second half follows from the first.

    Training words: l ~ U{1..⌊max_length/2⌋}; the first half is an a and l - 1 uniformly drawn letters.
    """

    alphabet = "ab"
    repairable_rules = ("rule_1",)
    completion_rules = ("rule_2",)
    acceptors = {"rule_2": begins_with("a")}
    min_max_length = 2
    reverse: ClassVar[bool]
    """Whether the second half is the first one reversed."""

    @abstractmethod
    def repeated(self, place: Tensor, length: Tensor) -> Tensor:
        """(T,) places and (B, 1) lengths of words -> (B, T) the place in each word that has the same symbol."""

    def rule_1(self, symbols: Tensor) -> Tensor:
        num = length(symbols).long()[:, None]
        place = torch.arange(symbols.shape[1], device=symbols.device)
        same = symbols == symbols.gather(1, self.repeated(place, num).clamp(0, max(symbols.shape[1] - 1, 0)))
        return (num[:, 0] % 2 == 0) & (same | (place >= num)).all(1)

    def rule_2(self, symbols: Tensor) -> Tensor:
        return (symbols[:, :1] == A).any(1)

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return (symbols[:, :1] <= A).all(1)  # A or PAD

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        half = torch.randint(1, self.max_length // 2 + 1, (num, 1), generator=generator)
        letters = A + torch.randint(2, (num, self.max_length), generator=generator)
        letters[:, 0] = A
        place = torch.arange(self.max_length)
        source = torch.where(place < half, place, self.repeated(place, 2 * half))
        return letters.gather(1, source.clamp_min(0)).masked_fill(place >= 2 * half, PAD).to(torch.int8)

    def make_process(self) -> HalfProcess:
        return HalfProcess(len(self.alphabet), self.max_length // 2, first=0, reverse=self.reverse)


class WW(Halves):
    """ww: a string twice.

    R1: the second half equals the first.
    R2: the first symbol is a.

    Example: "abbabb" is a word; "baba" breaks R2 but keeps R1. The language is the standard example of one that is not
    context-free (Hopcroft and Ullman 1979).

    >>> grammar = WW(max_length=8)
    >>> verdicts = grammar.judge(grammar.encode(["abbabb", "baba"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True], 'rule_2': [True, False], 'grammatical': [True, False]}
    """

    name = "ww"
    level = "context-sensitive"
    rules = {"rule_1": "second half = first half", "rule_2": "begins with a"}
    reverse = False

    def repeated(self, place: Tensor, length: Tensor) -> Tensor:
        return (place + length // 2) % length.clamp_min(1)


class WWReversed(Halves):
    """w w^R: a string and the same backwards, which is a palindrome of even length.

    R1: the second half is the first one reversed.
    R2: the first symbol is a.

    Example: "abba" is a word; "baab" breaks R2 but keeps R1.

    >>> grammar = WWReversed(max_length=8)
    >>> verdicts = grammar.judge(grammar.encode(["abba", "baab"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True], 'rule_2': [True, False], 'grammatical': [True, False]}
    """

    name = "wwR"
    level = "context-free"
    rules = {"rule_1": "second half = first half reversed", "rule_2": "begins with a"}
    reverse = True

    def repeated(self, place: Tensor, length: Tensor) -> Tensor:
        return length - 1 - place
