"""What the bracket languages share: the check for matching brackets, the two samplers, and the prompts.

Kinds of brackets are numbered: kind k opens with token 3 + 2k and closes with token 4 + 2k.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import FIRST_SYMBOL, PAD
from rule_extrapolation.grammars.exact import acceptor
from rule_extrapolation.grammars.exact.bracket_process import BracketProcess
from rule_extrapolation.grammars.grammar import MAX_PROMPTS, Grammar
from rule_extrapolation.ops import strings
from rule_extrapolation.ops.words import brackets, draw_keys

PROMPT_SEED = 2409_13728


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


def dyck_words(num: int, length: int, kinds: int, generator: torch.Generator) -> Tensor:
    """(num, length) nested words: the sampler's distribution given that a word has exactly this many symbols."""
    if length == 0:
        return torch.empty(num, 0, dtype=torch.long)
    words = torch.empty(0, length, dtype=torch.long)
    while len(words) < num:
        drawn = sample_brackets(torch.full((num,), length), kinds, length, nest=True, generator=generator)
        words = torch.cat([words, drawn[drawn[:, -1] != PAD]])
    return words[:num]


class BracketGrammar(Grammar):
    """A language of brackets. Its prompts are two symbols and a nested word of n symbols.

    There are 2^(n-1) ID prompts and as many OOD prompts (one each for n = 0). Their words are drawn with a fixed seed,
    so that the prompts are the same in every run. A word that is drawn more than once makes several equal prompts.
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
        if self.num_prompts(n) > MAX_PROMPTS:
            raise ConfigError("test_prompt_length", n, f"gives 2^{n - 1} ID and OOD prompts each; use 18 or less")

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        targets = sample_targets(num, self.max_length, generator)
        return sample_brackets(targets, self.kinds, self.max_length, self.nest, generator)

    def make_process(self) -> BracketProcess:
        return BracketProcess(self.kinds, self.max_length // 2, self.nest)

    @staticmethod
    def num_prompts(n: int) -> int:
        return 2 ** max(n - 1, 0)

    def start_with(self, start: str, words: Tensor) -> Tensor:
        """(N, n) words -> (N, n + 2): each word after the two symbols of ``start``."""
        return torch.cat([self.encode([start])[:, :-1].expand(len(words), -1), words], 1)

    def id_and_ood_prompts(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(PROMPT_SEED)
        n = self.test_prompt_length
        id_, ood = (
            self.start_with(start, dyck_words(self.num_prompts(n), n, self.kinds, generator))
            for start in (self.id_start, self.ood_start)
        )
        return id_, ood


class OneKind(BracketGrammar):
    """Matched brackets of a single kind."""

    level = "context-free"
    rules = {"rule_1": "matched"}

    def rule_1(self, symbols: Tensor) -> Tensor:
        return is_matched(symbols, 0)

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return never_below_zero(symbols, 0)


class TwoKinds(BracketGrammar):
    """Parentheses (kind 0) and square brackets (kind 1). Each rule requires one kind to match and ignores the other."""

    alphabet = "()[]"
    rules = {"rule_1": "[ ] matched", "rule_2": "( ) matched"}
    acceptors = {"rule_1": acceptor.matching("[]"), "rule_2": acceptor.matching("()")}
    prompt_prefix = 2
    id_start = "(["
    ood_start = ")["

    def rule_1(self, symbols: Tensor) -> Tensor:
        return is_matched(symbols, 1)

    def rule_2(self, symbols: Tensor) -> Tensor:
        return is_matched(symbols, 0)
