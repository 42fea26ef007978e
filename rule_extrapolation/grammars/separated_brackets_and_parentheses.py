from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.core.tokens import FIRST_SYMBOL
from rule_extrapolation.grammars.dyck import (
    BracketGrammar,
    is_matched,
    nested_words,
    never_below_zero,
    opening,
    sample_brackets,
    sample_targets,
)
from rule_extrapolation.grammars.exact import acceptor
from rule_extrapolation.grammars.exact.bracket_process import BracketProcess


def only_one_kind(kind: str, symbol: str) -> str | None:
    """Acceptor step for R2. The state is the kind that has occurred, or "" if none has."""
    here = "()" if symbol in "()" else "[]"
    return here if kind in ("", here) else None


class SeparatedBracketsAndParentheses(BracketGrammar):
    """Matching parentheses or matching brackets, but never both kinds in one word.

    R1: ( and ) match, and [ and ] match, the other kind ignored.
    R2: only one kind of bracket occurs.

    Training words: half of them parentheses and half brackets, in random order, drawn as for L5
    (``ParenthesesAndBrackets``) with one kind.

    Example: "(())" is a word; "[]()" breaks R2 but keeps R1.

    >>> grammar = SeparatedBracketsAndParentheses(max_length=8)
    >>> verdicts = grammar.judge(grammar.encode(["(())", "[]()"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True], 'rule_2': [True, False], 'grammatical': [True, False]}
    """

    name = "separated_brackets_and_parentheses"
    level = "context-free"
    alphabet = "()[]"
    rules = {"rule_1": "( ) and [ ] matched", "rule_2": "only one kind of bracket"}
    completion_rules = ("rule_2",)
    repairable_rules = ("rule_1",)
    acceptors = {
        "rule_1": acceptor.both(acceptor.matching("()"), acceptor.matching("[]")),
        "rule_2": acceptor.Acceptor("", only_one_kind, lambda kind: True),
    }

    def rule_1(self, symbols: Tensor) -> Tensor:
        return is_matched(symbols, 0) & is_matched(symbols, 1)

    def rule_2(self, symbols: Tensor) -> Tensor:
        is_parenthesis = (symbols >= FIRST_SYMBOL) & (symbols < opening(1))
        return ~(is_parenthesis.any(1) & (symbols >= opening(1)).any(1))

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return self.rule_2(symbols) & never_below_zero(symbols, 0) & never_below_zero(symbols, 1)

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        targets = sample_targets(num, self.max_length, generator)
        parentheses = sample_brackets(targets, 1, self.max_length, nest=True, generator=generator)
        kind = (torch.randperm(num, generator=generator) % 2).to(torch.int8)
        return torch.where(parentheses >= FIRST_SYMBOL, parentheses + 2 * kind[:, None], parentheses)

    def make_process(self) -> BracketProcess:
        return BracketProcess(2, self.max_length // 2, nest=True, mixed=False)

    def prompt_texts(self) -> tuple[list[str], list[str]]:
        """ID: "((" and a word of parentheses, or "[[" and a word of brackets. OOD: "([" and a word of L5."""
        n = self.test_prompt_length
        id_ = [kind[0] * 2 + word for kind in ("()", "[]") for word in nested_words(n, kind)]
        return id_, ["([" + word for word in nested_words(n, self.alphabet)]
