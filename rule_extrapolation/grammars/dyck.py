"""What the bracket languages share: matching and nesting, the two samplers, and prompts built around a Dyck-2 word.

The kinds of brackets are numbered: kind k opens with token 3 + 2k and closes with token 4 + 2k.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rule_extrapolation.errors import ConfigError
from rule_extrapolation.grammars.grammar import FIRST_SYMBOL, MAX_PROMPTS, PAD, Grammar
from rule_extrapolation.theory import acceptor
from rule_extrapolation.theory.bracket_process import BracketProcess

PROMPT_SEED = 2409_13728


def opening(kind: int | Tensor) -> int | Tensor:
    return FIRST_SYMBOL + 2 * kind


def depth(symbols: Tensor, kind: int) -> Tensor:
    """(B, T) -> (B, T): brackets of that kind opened and not closed, after each symbol; negative if too many closed."""
    opens, closes = (symbols == opening(kind) + side for side in (0, 1))
    return (opens.view(torch.int8) - closes.view(torch.int8)).cumsum(1, dtype=torch.int32)


def never_below_zero(symbols: Tensor, kind: int) -> Tensor:
    """(B, T) -> (B,) bool: no closing bracket of that kind without an opening one before it."""
    return (depth(symbols, kind) >= 0).all(1)


def matched(symbols: Tensor, kind: int) -> Tensor:
    """(B, T) -> (B,) bool: brackets of that kind pair up, other kinds ignored."""
    depths = depth(symbols, kind)
    return (depths >= 0).all(1) & (depths[:, -1:] == 0).all(1)


def nested(symbols: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) -> two (B,): every closing bracket closes the one opened last (bool), and how many remain open."""
    batch, length = symbols.shape
    # Positions first: each step then reads and writes rows. No bracket is 0, which stack[0] is: the floor.
    stack = symbols.new_zeros(length + 1, batch)
    top = torch.zeros(1, batch, dtype=torch.long, device=symbols.device)
    proper = torch.ones(1, batch, dtype=torch.bool, device=symbols.device)
    is_symbol = symbols >= FIRST_SYMBOL
    opens = is_symbol & ((symbols - FIRST_SYMBOL) % 2 == 0)
    by_position = (x.T[:, None].contiguous() for x in (symbols, opens, is_symbol & ~opens))
    for symbol, opening_, closing in zip(*by_position):
        proper &= ~closing | (stack.gather(0, top) == symbol - 1)
        top = (top + opening_.long() - closing.long()).clamp_(min=0)
        stack.scatter_(0, top, torch.where(opening_, symbol, stack.gather(0, top)))
    return proper[0], top[0]


def sample_brackets(
    targets: Tensor, kinds: int, width: int, nest: bool, generator: torch.Generator | None = None
) -> Tensor:
    """Draw bracket words, one for each target length.

    At each position one of the allowed brackets is drawn evenly: an opening one of each kind, unless what is open
    already needs all the symbols left to the target; and a closing one, of the kind opened last if ``nest`` (the word
    then ends when nothing is open), else of each kind that is open (the word then runs to its target).

    Args:
        targets: (N,) even lengths, ``width`` at most.

    Returns:
        (N, width) symbols followed by PAD.
    """
    num = len(targets)
    words = torch.full((num, width), PAD)
    # Of the words that go on alone: where they belong, and what is open in them.
    row = torch.arange(num)
    open_ = torch.zeros(num, kinds, dtype=torch.long)
    stack = torch.zeros(num, width // 2 + 1, dtype=torch.long)  # kinds; stack[0] is the floor
    for position in range(width):
        drawn = torch.rand(num, 1, generator=generator, dtype=torch.float64)
        total = open_.sum(1)
        going_on = position < targets
        if nest and position > 0:
            going_on &= total > 0
        if not going_on.all():
            row, open_, stack, targets, total = (x[going_on] for x in (row, open_, stack, targets, total))
        may_open = (position + total < targets)[:, None].expand(-1, kinds)
        may_close = open_ > 0
        index = torch.arange(len(row))
        if nest:
            may_close &= torch.nn.functional.one_hot(stack[index, total], kinds).bool()
        # Columns: each kind's opening bracket, then each kind's closing one.
        choices = torch.cat([may_open, may_close], 1)
        pick = drawn[row] * choices.sum(1, keepdim=True)
        choice = (choices.cumsum(1) > pick).long().argmax(1)
        kind, closes = choice % kinds, choice >= kinds
        words[row, position] = opening(kind) + closes.long()
        open_[index, kind] += torch.where(closes, -1, 1)
        if nest:
            top = total + torch.where(closes, -1, 1)
            stack[index, top] = torch.where(closes, stack[index, top], kind)
    return words


def sample_targets(num: int, max_length: int, generator: torch.Generator | None) -> Tensor:
    """(num,): 2l, l ~ U{1..max_length//2}."""
    return 2 * torch.randint(1, max_length // 2 + 1, (num,), generator=generator)


def dyck_words(num: int, length: int, kinds: int, generator: torch.Generator) -> Tensor:
    """(num, length): nested words of exactly that many symbols, as the sampler draws them among others."""
    if length == 0:
        return torch.empty(num, 0, dtype=torch.long)
    words = torch.empty(0, length, dtype=torch.long)
    while len(words) < num:
        drawn = sample_brackets(torch.full((num,), length), kinds, length, nest=True, generator=generator)
        words = torch.cat([words, drawn[drawn[:, -1] != PAD]])
    return words[:num]


class BracketGrammar(Grammar):
    """A language of brackets whose prompts are two symbols and a nested word of n symbols.

    There are 2^(n-1) ID and as many OOD prompts (one for n=0), drawn with a seed of their own: every run has the same.
    Some come more than once, as often as the sampler draws their words. Training words are the sampler's.
    """

    nest: ClassVar[bool] = True

    least_max_length = 2
    default_prompt_length = 6
    id_start: ClassVar[str]
    ood_start: ClassVar[str]

    @property
    def kinds(self) -> int:
        return len(self.alphabet) // 2

    def check_prompt_length(self, n: int) -> None:
        most = self.max_length - 2
        if n % 2 or not 0 <= n <= most:
            raise ConfigError(
                "test_prompt_length",
                n,
                f"must be even, from 0 to {most - most % 2}: two symbols and n more fit max_length={self.max_length}",
            )
        if self.num_prompts(n) > MAX_PROMPTS:
            raise ConfigError("test_prompt_length", n, f"makes 2^{n - 1} prompts of each kind; use 18 or less")

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        targets = sample_targets(num, self.max_length, generator)
        return sample_brackets(targets, self.kinds, self.max_length, self.nest, generator)

    def make_process(self) -> BracketProcess:
        return BracketProcess(self.kinds, self.max_length // 2, self.nest)

    @staticmethod
    def num_prompts(n: int) -> int:
        return 2 ** max(n - 1, 0)

    def start_with(self, start: str, words: Tensor) -> Tensor:
        """(N, n) words -> (N, n + 2), each behind the two symbols of ``start``."""
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
        return matched(symbols, 0)

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return never_below_zero(symbols, 0)


class TwoKinds(BracketGrammar):
    """Parentheses (kind 0) and square brackets (kind 1), each matched; the other kind is ignored by a rule."""

    alphabet = "()[]"
    rules = {"rule_1": "[ ] matched", "rule_2": "( ) matched"}
    acceptors = {"rule_1": acceptor.matched("[]"), "rule_2": acceptor.matched("()")}
    prompt_prefix = 2
    id_start = "(["
    ood_start = ")["

    def rule_1(self, symbols: Tensor) -> Tensor:
        return matched(symbols, 1)

    def rule_2(self, symbols: Tensor) -> Tensor:
        return matched(symbols, 0)
