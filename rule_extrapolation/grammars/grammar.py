"""What a language is: tokens, rules, a sampler and prompt sets.

Everything works on a batch of strings at once, as (batch, length) tensors of token ids. SOS=0, EOS=1, PAD=2 and the
alphabet from 3 on. A *row* of data is framed: SOS, symbols, EOS, PAD... ; a *string*, which the rules read, has no SOS
and ends before its first EOS, or at the end of the tensor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property, reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL, PAD, SOS
from rule_extrapolation.grammars.exact.acceptor import Acceptor
from rule_extrapolation.grammars.exact.process import NO_SYMBOL, Process
from rule_extrapolation.ops.strings import cut_at_eos, frame

# A prompt set is decoded at every validation: past this it is a mistake, not an experiment.
MAX_PROMPTS = 2**17


class Grammar(ABC):
    """A language as the intersection of rules, with the distribution its training words are drawn from.

    A subclass states its name, level, alphabet, rules in words and the least max_length that a word fits, and defines
    ``rule_1`` and/or ``rule_2``, ``is_prefix_of_word`` and ``sample_symbols``. Each rule receives strings that hold
    only symbols, followed by PAD, and says for each whether it keeps the rule.

    Args:
        max_length: the most symbols a training word has. A row of data has ``max_length + 2`` tokens.
        test_prompt_length: n, the length that the prompt sets are built from; None takes the language's own.

    Raises:
        ConfigError: no word fits max_length, or no prompt of that length does.
    """

    name: ClassVar[str]
    label: ClassVar[str | None] = None
    level: ClassVar[str]
    alphabet: ClassVar[str]
    rules: ClassVar[dict[str, str]]
    """The rules the language has, in words: a subset of rule_1, rule_2, rule_3."""
    kind: ClassVar[str] = "language"
    min_max_length: ClassVar[int]
    default_prompt_length: ClassVar[int] = 8
    prompt_prefix: ClassVar[int | None] = None
    """``rule_2_completion`` reads everything behind this many symbols of the prompt; None: behind all of it."""
    num_sos_prompts: ClassVar[int] = 32
    acceptors: ClassVar[dict[str, Acceptor]] = {}
    """The rules once more, for exact chance levels; and ``grammatical``, if it is more than all of them together."""

    def __init__(self, max_length: int, test_prompt_length: int | None = None):
        if max_length < self.min_max_length:
            raise ConfigError(
                "max_length", max_length, f"{self.name} has no word that short; use {self.min_max_length} or more"
            )
        self.max_length = max_length
        self.test_prompt_length = self.default_prompt_length if test_prompt_length is None else test_prompt_length
        self.check_prompt_length(self.test_prompt_length)

    @property
    def num_tokens(self) -> int:
        return FIRST_SYMBOL + len(self.alphabet)

    def about(self) -> dict[str, Any]:
        """What a run's results.json says of it."""
        return {"grammar": self.name, "label": self.label, "rules": self.rules}

    # Rules

    @abstractmethod
    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        """(B, T) symbols followed by PAD -> (B,) bool: could the string grow into a word of the language?"""

    def extra_constraint(self, symbols: Tensor) -> Tensor:
        """(B, T) symbols followed by PAD -> (B,) bool: what a word must keep besides the rules, if anything."""
        return torch.ones(len(symbols), dtype=torch.bool, device=symbols.device)

    def judge(self, strings: Tensor) -> dict[str, Tensor]:
        """Which rules each string keeps.

        Args:
            strings: (B, T) tokens without SOS; each row ends before its first EOS. A row with SOS or PAD before that
                is no string over the alphabet and keeps no rule.

        Returns:
            (B,) bool for each of the language's rules and for ``grammatical``.
        """
        symbols, is_string = cut_at_eos(strings)
        verdicts = {rule: getattr(self, rule)(symbols) for rule in self.rules}
        verdicts["grammatical"] = reduce(torch.logical_and, verdicts.values(), self.extra_constraint(symbols))
        return {name: verdict & is_string for name, verdict in verdicts.items()}

    def is_prefix(self, strings: Tensor) -> Tensor:
        """(B, T) tokens without SOS, each row up to its first EOS -> (B,) bool: a prefix of a word, of any length."""
        symbols, is_string = cut_at_eos(strings)
        return self.is_prefix_of_word(symbols) & is_string

    # Words

    @abstractmethod
    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        """(num, max_length) symbols followed by PAD, of any integer dtype, drawn from the training distribution."""

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """(num, max_length + 2) framed words, drawn from the training distribution."""
        return frame(self.sample_symbols(num, generator))

    def all_words(self) -> Tensor | None:
        """(N, max_length + 2) framed: the words that training uses once each, or None where it draws them."""
        return None

    def dataset(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """All words where the language trains on each once, else ``num`` drawn ones; framed."""
        words = self.all_words()
        return self.sample(num, generator) if words is None else words

    def make_process(self) -> Process | None:
        """The training distribution with its exact probabilities, or None where they are not known."""
        return None

    @cached_property
    def process(self) -> Process | None:
        with torch.device("cpu"):  # whatever a model that asks for it is being built on
            return self.make_process()

    @cached_property
    def optimal_loss(self) -> float | None:
        """Least cross-entropy per target position, in nats, if the distribution's probabilities are known: a word's
        entropy, spread over max_length + 1 target positions."""
        return None if self.process is None else self.process.entropy() / (self.max_length + 1)

    def log_probability(self, rows: Tensor) -> Tensor:
        """(N, T) framed words -> (N,) float64: the logarithms of their probabilities in training, in nats.

        Raises:
            ValueError: the language does not know its probabilities.
        """
        if self.process is None:
            raise ValueError(f"{self.name} does not know its words' probabilities; define make_process")
        return self.process.log_probability(as_numbers(rows[:, 1:]))

    # Prompts

    def check_prompt_length(self, n: int) -> None:
        """Raise a ConfigError unless prompts of length n exist and fit max_length."""
        if not 1 <= n <= self.max_length:
            raise ConfigError("test_prompt_length", n, f"must be from 1 to max_length, {self.max_length}")
        if len(self.alphabet) ** n > MAX_PROMPTS:
            most = int(math.log(MAX_PROMPTS, len(self.alphabet)))
            raise ConfigError("test_prompt_length", n, f"makes {len(self.alphabet)}^{n} prompts; use {most} or less")

    def id_and_ood_prompts(self) -> tuple[Tensor, Tensor]:
        """Two (N, P) tensors of symbols: every string of length n that a word could begin with, and every other."""
        strings = all_strings(self.alphabet, self.test_prompt_length)
        in_language = self.is_prefix_of_word(strings)
        return strings[in_language], strings[~in_language]

    @cached_property
    def prompts(self) -> dict[str, Tensor]:
        """(N, 1 + P) prompts, SOS first: ID, with which a word can begin; OOD, with which none can; SOS, empty."""
        id_, ood = self.id_and_ood_prompts()
        empty = torch.empty(self.num_sos_prompts, 0, dtype=torch.long)
        return {name: prepend_sos(symbols) for name, symbols in {"ID": id_, "OOD": ood, "SOS": empty}.items()}

    # Text

    def encode(self, strings: list[str]) -> Tensor:
        """Tokens of strings over the alphabet.

        Returns:
            (B, T) long: the symbols of each string, then EOS, then PAD.

        Raises:
            ValueError: a character outside the alphabet.
        """
        width = max(map(len, strings), default=0) + 1
        ids = {symbol: FIRST_SYMBOL + i for i, symbol in enumerate(self.alphabet)}
        for string in strings:
            if unknown := "".join(dict.fromkeys(symbol for symbol in string if symbol not in ids)):
                alphabet = " ".join(self.alphabet)
                raise ValueError(f"{string!r}: {unknown!r} is not in the alphabet of {self.name}: {alphabet}")
        rows = [[ids[symbol] for symbol in s] + [EOS] + [PAD] * (width - len(s) - 1) for s in strings]
        return torch.tensor(rows, dtype=torch.long).reshape(len(strings), width)

    def to_text(self, strings: Tensor) -> list[str]:
        """Text of (B, T) tokens, each row up to its first EOS; SOS and PAD in it show as ^ and _."""
        names = "^$_" + self.alphabet
        return ["".join(names[token] for token in row).split("$", 1)[0] for row in strings.tolist()]


def as_numbers(symbols: Tensor) -> Tensor:
    """(B, T) symbols followed by EOS or PAD -> the symbols counted from 0, followed by NO_SYMBOL."""
    return (symbols.long() - FIRST_SYMBOL).clamp_min(NO_SYMBOL)


def prepend_sos(symbols: Tensor) -> Tensor:
    return torch.nn.functional.pad(symbols.long(), (1, 0), value=SOS)


def all_strings(alphabet: str, length: int) -> Tensor:
    """(|alphabet|^length, length): every string of that length, in the alphabet's order."""
    place = len(alphabet) ** torch.arange(length - 1, -1, -1)
    return FIRST_SYMBOL + torch.arange(len(alphabet) ** length)[:, None] // place % len(alphabet)


def uniform_integers(high: Tensor, generator: torch.Generator | None) -> Tensor:
    """One integer, evenly from 0..high, for each entry of ``high``."""
    return (torch.rand(high.shape, generator=generator, dtype=torch.float64) * (high + 1)).long()
