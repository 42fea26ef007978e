"""What the bracket languages share: the check for matching brackets, the two samplers, and the prompts.

Kinds of brackets are numbered: kind k opens with token 3 + 2k and closes with token 4 + 2k.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import FIRST_SYMBOL
from rule_extrapolation.grammars.exact import acceptor
from rule_extrapolation.grammars.exact.bracket_process import BracketProcess
from rule_extrapolation.grammars.grammar import MAX_PROMPTS, Grammar
from rule_extrapolation.ops import strings
from rule_extrapolation.ops.words import brackets, draw_keys


def opening(kind: int) -> int:
    """The token of the opening bracket."""
    return FIRST_SYMBOL + 2 * kind


def never_below_zero(symbols: Tensor, kind: int) -> Tensor:
    """(B, T) -> (B,) bool: whether every closing bracket of this kind closes one that is open."""
    return strings.matched(symbols, opening(kind))[0]


def is_matched(symbols: Tensor, kind: int) -> Tensor:
    """(B, T) -> (B,) bool: whether the brackets of this kind match, other kinds ignored."""
    never_below, num_open = strings.matched(symbols, opening(kind))
    return never_below & (num_open == 0)


def sample_brackets(
    targets: Tensor, kinds: int, width: int, nest: bool, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one bracket word for each target length.

    Each symbol is drawn uniformly from the allowed brackets. An opening bracket of every kind is allowed unless the
    open brackets need all symbols left to the target. With ``nest``, the closing bracket of the kind opened last is
    allowed, and a word ends as soon as no bracket is open. Without it, the closing bracket of every kind that is open
    is allowed, and a word ends at its target length.

    Args:
        targets: (N,) even target lengths, at most ``width``.
        kinds: the number of kinds of brackets.

    Returns:
        (N, width) int8 symbols followed by PAD.
    """
    return brackets(targets, kinds, width, nest, draw_keys(len(targets), generator))


def sample_targets(num: int, max_length: int, generator: torch.Generator | None) -> Tensor:
    """(num,) target lengths 2l with l ~ U{1..⌊max_length/2⌋}."""
    return 2 * torch.randint(1, max_length // 2 + 1, (num,), generator=generator)


def nested_words(length: int, alphabet: str) -> list[str]:
    """All words of exactly ``length`` symbols that ``sample_brackets`` can draw with ``nest``: properly nested, and
    closed only at their end. Length 0 has the empty word.

    There are kinds^m C(m-1) of them for m = length / 2 pairs, where C is the Catalan number.

    >>> nested_words(4, "()[]")
    ['(())', '([])', '[()]', '[[]]']
    """
    pairs = [alphabet[i : i + 2] for i in range(0, len(alphabet), 2)]

    def within(length: int) -> list[str]:
        """All properly nested strings: a first pair, what it encloses, and what follows it."""
        if length == 0:
            return [""]
        splits = [(within(n), within(length - 2 - n)) for n in range(0, length, 2)]
        return [
            left + enclosed + right + following
            for enclosed_strings, following_strings in splits
            for left, right in pairs
            for enclosed in enclosed_strings
            for following in following_strings
        ]

    if length == 0:
        return [""]
    return sorted(left + enclosed + right for left, right in pairs for enclosed in within(length - 2))


def num_nested_words(length: int, kinds: int) -> int:
    """How many words ``nested_words`` returns."""
    pairs = length // 2
    return kinds**pairs * math.comb(2 * pairs - 2, pairs - 1) // pairs if pairs else 1


class BracketGrammar(Grammar):
    """A language of brackets. Its prompts are two symbols and a nested word of n symbols.

    Each prompt set has every such word once: those of n symbols that the sampler can draw.
    """

    nest: ClassVar[bool] = True
    """Whether training words nest properly."""

    min_max_length = 2
    default_prompt_length = 6
    id_start: ClassVar[str]
    """The first two symbols of ID prompts."""
    ood_start: ClassVar[str]
    """The first two symbols of OOD prompts."""

    @property
    def kinds(self) -> int:
        return len(self.alphabet) // 2

    def check_prompt_length(self, n: int) -> None:
        longest = self.max_length - 2
        if n % 2 or not 0 <= n <= longest:
            raise ConfigError(
                "test_prompt_length",
                n,
                f"must be even and from 0 to {longest - longest % 2}: prompts have n + 2 symbols, at most "
                f"max_length={self.max_length}",
            )
        if (num := num_nested_words(n, self.kinds)) > MAX_PROMPTS:
            most = max(even for even in range(0, n, 2) if num_nested_words(even, self.kinds) <= MAX_PROMPTS)
            raise ConfigError("test_prompt_length", n, f"gives {num:,} OOD prompts; use {most} or less")

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        targets = sample_targets(num, self.max_length, generator)
        return sample_brackets(targets, self.kinds, self.max_length, self.nest, generator)

    def make_process(self) -> BracketProcess:
        return BracketProcess(self.kinds, self.max_length // 2, self.nest)

    def prompt_texts(self) -> tuple[list[str], list[str]]:
        """The ID and the OOD prompts."""
        words = nested_words(self.test_prompt_length, self.alphabet)
        return [self.id_start + word for word in words], [self.ood_start + word for word in words]

    def id_and_ood_prompts(self) -> tuple[Tensor, Tensor]:
        id_, ood = (self.encode(texts)[:, :-1] for texts in self.prompt_texts())
        return id_, ood


class OneKind(BracketGrammar):
    """Matched brackets of a single kind."""

    level = "context-free"
    rules = {"rule_1": "matched"}
    repairable_rules = ("rule_1",)

    def rule_1(self, symbols: Tensor) -> Tensor:
        return is_matched(symbols, 0)

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return never_below_zero(symbols, 0)


class TwoKinds(BracketGrammar):
    """Parentheses (kind 0) and square brackets (kind 1). Each rule requires one kind to match and ignores the other."""

    alphabet = "()[]"
    rules = {"rule_1": "[ ] matched", "rule_2": "( ) matched"}
    completion_rules = ("rule_2",)
    repairable_rules = ("rule_1",)
    acceptors = {"rule_1": acceptor.matching("[]"), "rule_2": acceptor.matching("()")}
    prompt_prefix = 2
    id_start = "(["
    ood_start = ")["

    def rule_1(self, symbols: Tensor) -> Tensor:
        return is_matched(symbols, 1)

    def rule_2(self, symbols: Tensor) -> Tensor:
        return is_matched(symbols, 0)
