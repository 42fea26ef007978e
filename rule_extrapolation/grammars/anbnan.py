from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.grammars.exact.acceptor import Acceptor, tally
from rule_extrapolation.grammars.exact.process import Process
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.grammars.letters import A, B, seen, uniform_over
from rule_extrapolation.ops.strings import count
from rule_extrapolation.ops.words import runs


def read_b_block(state: tuple[str, int], symbol: str) -> tuple[str, int] | None:
    """Acceptor step for R2. The state is the part of the word, "before", "within" or "after" the block of b's, and how
    many more a's came before the block than after it."""
    part, surplus = state
    if symbol == "b":
        return None if part == "after" else ("within", surplus)
    if part == "before":
        return part, surplus + 1
    return ("after", surplus - 1) if surplus else None


B_BLOCK_IN_THE_MIDDLE = Acceptor(("before", 0), read_b_block, lambda state: state[0] == "before" or state[1] == 0)


class AnBnAn(Grammar):
    """a^n b^n a^n: twice as many a's as b's, with the b's together in the middle.

    R1: #a = 2 #b.
    R2: the b's are adjacent, with as many a's before them as after them.

    Training words: n ~ U{1..⌊max_length/3⌋}; a^n b^n a^n.

    Example: "aabbaa" is a word; "abaaba" breaks R2 but keeps R1.

    >>> grammar = AnBnAn(max_length=9)
    >>> verdicts = grammar.judge(grammar.encode(["aabbaa", "abaaba"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True], 'rule_2': [True, False], 'grammatical': [True, False]}
    """

    name = "aNbNaN"
    level = "context-sensitive"
    alphabet = "ab"
    rules = {"rule_1": "#a = 2 #b", "rule_2": "b's together, as many symbols before as after"}
    completion_rules = ("rule_2",)
    repairable_rules = ("rule_1",)
    acceptors = {"rule_1": tally(a=1, b=-2), "rule_2": B_BLOCK_IN_THE_MIDDLE}
    min_max_length = 3

    def split_at_bs(self, symbols: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T) -> three (B, T) bool: the a's before the first b, between two b's, and after the last."""
        is_a, b_seen, b_to_come = symbols == A, seen(symbols, B), seen(symbols.flip(1), B).flip(1)
        return is_a & ~b_seen, is_a & b_seen & b_to_come, is_a & b_seen & ~b_to_come

    def rule_1(self, symbols: Tensor) -> Tensor:
        return count(symbols, A) == 2 * count(symbols, B)

    def rule_2(self, symbols: Tensor) -> Tensor:
        before, between, after = self.split_at_bs(symbols)
        no_b = count(symbols, B) == 0
        return no_b | (~between.any(1) & (before.sum(1) == after.sum(1)))

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        before, between, after = self.split_at_bs(symbols)
        before, after, bs = before.sum(1), after.sum(1), count(symbols, B)
        return ~between.any(1) & (bs <= before) & (after <= bs) & ((after == 0) | (bs == before))

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        return self.words(torch.randint(1, self.max_length // 3 + 1, (num,), generator=generator))

    def words(self, n: Tensor) -> Tensor:
        return runs([A, B, A], torch.stack([n, n, n], 1), self.max_length)

    def make_process(self) -> Process:
        return uniform_over(self.words(torch.arange(1, self.max_length // 3 + 1)), len(self.alphabet))
