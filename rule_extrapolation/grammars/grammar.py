"""The base class of languages: tokens, rules, a sampler and prompt sets.

Methods take batches of strings as (B, T) tensors of token ids: SOS=0, EOS=1, PAD=2, and the alphabet from 3 on. A
*framed* word is a row of data: SOS, symbols, EOS, PAD... A *string*, which the rules judge, has no SOS and ends before
its first EOS, or at the end of the tensor.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from functools import cached_property, reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError, check_positive
from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL, PAD, SOS
from rule_extrapolation.grammars.exact.acceptor import Acceptor
from rule_extrapolation.grammars.exact.process import NO_SYMBOL, Process
from rule_extrapolation.ops.strings import frame, truncate_at_eos

MAX_PROMPTS = 2**17
"""The maximum size of a prompt set. Every validation completes all prompts, so a larger set is probably a mistake."""


class Grammar(ABC):
    """A language: the intersection of its rules, with a distribution of training words.

    A subclass sets ``name``, ``level``, ``alphabet``, ``rules`` and ``min_max_length`` and defines
    ``is_prefix_of_word``, ``sample_symbols`` and for each rule a method of the rule's name. A rule maps (B, T) symbols
    followed by PAD to (B,) bool.

    Args:
        max_length: the maximum number of symbols in a training word. A framed word has ``max_length + 2`` tokens.
        test_prompt_length: n, the length from which the prompt sets are built. None takes the language's default.
        num_sos_prompts: the number of empty prompts, all of them equal: a decoder that draws tokens completes each on
            its own.

    Raises:
        ConfigError: no word has at most ``max_length`` symbols, or no prompt of length n fits.
    """

    name: ClassVar[str]
    label: ClassVar[str | None] = None
    """A short alias of the name, such as L3."""
    level: ClassVar[str]
    """The complexity class in Chomsky's hierarchy."""
    alphabet: ClassVar[str]
    """The symbols, in the order of their tokens."""
    rules: ClassVar[dict[str, str]]
    """The language's rules in words, by name. Names are free, such as ``even_length``; the paper's rules are
    ``rule_1``, ``rule_2`` and ``rule_3``. Each is a method of this name and has the metric ``<name>_accuracy``."""
    completion_rules: ClassVar[tuple[str, ...]] = ()
    """The rules that can also be read on a completion alone. Each has the metric ``<name>_completion_accuracy``."""
    repairable_rules: ClassVar[tuple[str, ...]] = ()
    """The rules that a prompt may break and its completion repair. Each has the metric ``<name>_repaired_accuracy``,
    over the completions of prompts that do not keep the rule already."""
    kind: ClassVar[str] = "language"
    unit: ClassVar[str] = "symbols"
    min_max_length: ClassVar[int]
    """The smallest ``max_length`` for which there are training words."""
    default_prompt_length: ClassVar[int] = 8
    """The default of ``test_prompt_length``."""
    prompt_prefix: ClassVar[int | None] = None
    """A rule read on a completion alone judges what follows this many symbols of the prompt. None: what follows the
    prompt."""
    acceptors: ClassVar[dict[str, Acceptor]] = {}
    """The rules as automata, from which chance levels are computed exactly. A language with an ``extra_constraint``
    also has an acceptor for ``grammatical``."""

    def __init__(self, max_length: int, test_prompt_length: int | None = None, num_sos_prompts: int = 32):
        check_positive(num_sos_prompts=num_sos_prompts)
        if max_length < self.min_max_length:
            raise ConfigError(
                "max_length", max_length, f"{self.name} has no word that short; use {self.min_max_length} or more"
            )
        self.max_length, self.num_sos_prompts = max_length, num_sos_prompts
        self.test_prompt_length = self.default_prompt_length if test_prompt_length is None else test_prompt_length
        self.check_prompt_length(self.test_prompt_length)

    def __repr__(self) -> str:
        """Such as AnBn(max_length=16), with the other arguments that are not at their defaults."""
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            default = self.default_prompt_length if name == "test_prompt_length" else parameter.default
            value = getattr(self, name, default)
            # An argument that is None by default may stand for a class attribute.
            if repr(value) != repr(getattr(type(self), name, default)):
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary: SOS, EOS, PAD and the alphabet."""
        return FIRST_SYMBOL + len(self.alphabet)

    def about(self) -> dict[str, Any]:
        """The entries that describe the language in results.json."""
        return {"grammar": self.name, "label": self.label, "rules": self.rules}

    # Rules

    @property
    def has_acceptors(self) -> bool:
        """Whether each rule has an acceptor, so that chance levels are exact."""
        return self.acceptors.keys() >= self.rules.keys()

    @abstractmethod
    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        """(B, T) symbols followed by PAD -> (B,) bool: whether the string is a prefix of some word, of any length."""

    def extra_constraint(self, symbols: Tensor) -> Tensor:
        """(B, T) symbols followed by PAD -> (B,) bool: a further condition on words. By default there is none."""
        return torch.ones(len(symbols), dtype=torch.bool, device=symbols.device)

    def judge(self, strings: Tensor) -> dict[str, Tensor]:
        """Which rules each string keeps.

        Args:
            strings: (B, T) tokens without SOS. Only those before a row's first EOS are judged. A row with SOS or PAD
                among them is not a string over the alphabet and keeps no rule.

        Returns:
            (B,) bool for each of the language's rules and for ``grammatical``: all rules and ``extra_constraint``.
        """
        symbols, is_string = truncate_at_eos(strings)
        verdicts = {rule: getattr(self, rule)(symbols) for rule in self.rules}
        verdicts["grammatical"] = reduce(torch.logical_and, verdicts.values(), self.extra_constraint(symbols))
        return {name: verdict & is_string for name, verdict in verdicts.items()}

    def is_prefix(self, strings: Tensor) -> Tensor:
        """(B, T) tokens without SOS -> (B,) bool: whether what precedes a row's first EOS is a prefix of some word."""
        symbols, is_string = truncate_at_eos(strings)
        return self.is_prefix_of_word(symbols) & is_string

    # Words

    @abstractmethod
    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        """Draw (num, max_length) symbols followed by PAD, of any integer dtype, from the training distribution."""

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw (num, max_length + 2) framed words from the training distribution."""
        return frame(self.sample_symbols(num, generator))

    def all_words(self) -> Tensor | None:
        """(N, max_length + 2) framed words, if training uses each word once, or None if it draws words."""
        return None

    def dataset(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Framed training words: ``all_words`` if the language trains on each word once, else ``num`` drawn words."""
        words = self.all_words()
        return self.sample(num, generator) if words is None else words

    def make_process(self) -> Process | None:
        """The training distribution with exact probabilities, or None if they are unknown."""
        return None

    @cached_property
    def process(self) -> Process | None:
        """The result of ``make_process``, built once."""
        with torch.device("cpu"):  # a model may be under construction on another device
            return self.make_process()

    @cached_property
    def optimal_loss(self) -> float | None:
        """The minimum of the expected cross-entropy in nats per target position, or None if it is unknown: the entropy
        of a word divided by max_length + 1."""
        return None if self.process is None else self.process.entropy() / (self.max_length + 1)

    def log_probability(self, rows: Tensor) -> Tensor:
        """(N, T) framed words -> (N,) float64: log-probabilities under the training distribution, in nats.

        Raises:
            ValueError: the language has no ``process``.
        """
        if self.process is None:
            raise ValueError(f"the exact probabilities of {self.name} are unknown; define make_process")
        return self.process.log_probability(zero_based(rows[:, 1:]))

    # Prompts

    def check_prompt_length(self, n: int) -> None:
        """Raise a ConfigError unless prompts of length n exist and fit max_length."""
        if not 1 <= n <= self.max_length:
            raise ConfigError("test_prompt_length", n, f"must be from 1 to max_length={self.max_length}")
        if len(self.alphabet) ** n > MAX_PROMPTS:
            longest = int(math.log(MAX_PROMPTS, len(self.alphabet)))
            raise ConfigError("test_prompt_length", n, f"gives {len(self.alphabet)}^{n} prompts; use {longest} or less")

    def num_given_symbols(self, length: int) -> int:
        """How many symbols of a word of this length are given as a prompt when words of one length are evaluated.

        By default one more than half: a^n does not determine its completion, but a^n b does.
        """
        return length // 2 + 1

    def id_and_ood_prompts(self) -> tuple[Tensor, Tensor]:
        """(N, P) symbols of the ID and the OOD prompts: by default, the strings of length n that are prefixes of words,
        and the other strings of length n."""
        strings = all_strings(self.alphabet, self.test_prompt_length)
        is_id = self.is_prefix_of_word(strings)
        return strings[is_id], strings[~is_id]

    @cached_property
    def prompts(self) -> dict[str, Tensor]:
        """(N, 1 + P) tokens of each prompt set, each SOS and a prompt: ID prompts are prefixes of words, OOD prompts
        are not, and SOS prompts are empty."""
        id_, ood = self.id_and_ood_prompts()
        empty = torch.empty(self.num_sos_prompts, 0, dtype=torch.long)
        return {name: prepend_sos(symbols) for name, symbols in {"ID": id_, "OOD": ood, "SOS": empty}.items()}

    def num_prompts(self) -> dict[str, int]:
        """The number of different prompts in each set. SOS has one, however often it is completed."""
        return {name: len(prompts.unique(dim=0)) for name, prompts in self.prompts.items()}

    # Text

    def unknown_symbols(self, string: str) -> str | None:
        """A message that names the characters outside the alphabet, or None if there are none."""
        unknown = "".join(dict.fromkeys(symbol for symbol in string if symbol not in self.alphabet))
        return f"{unknown!r} is not in the alphabet of {self.name}: {' '.join(self.alphabet)}" if unknown else None

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
            if problem := self.unknown_symbols(string):
                raise ValueError(f"{string!r}: {problem}")
        rows = [[ids[symbol] for symbol in s] + [EOS] + [PAD] * (width - len(s) - 1) for s in strings]
        return torch.tensor(rows, dtype=torch.long).reshape(len(strings), width)

    def encode_prompt(self, prompt: str) -> Tensor:
        """A prompt as (1, P) tokens, SOS first.

        Raises:
            ConfigError: a symbol outside the alphabet.
        """
        if problem := self.unknown_symbols(prompt):
            raise ConfigError("prompt", prompt, problem)
        return prepend_sos(self.encode([prompt])[:, :-1])

    def judge_completion(self, tokens: Tensor, prompt_length: int) -> tuple[str, bool, dict[str, bool]]:
        """(1, P + new) tokens -> the completion as text, whether it contains EOS, and which rules the whole string
        keeps."""
        [text] = self.to_text(tokens[:, prompt_length:])
        verdicts = {rule: kept.item() for rule, kept in self.judge(tokens[:, 1:]).items() if rule in self.rules}
        return text, (tokens[:, prompt_length:] == EOS).any().item(), verdicts

    def to_text(self, strings: Tensor) -> list[str]:
        """The text of (B, T) tokens, each row up to its first EOS. SOS and PAD are written as ^ and _."""
        names = "^$_" + self.alphabet
        return ["".join(names[token] for token in row).split("$", 1)[0] for row in strings.tolist()]


def zero_based(symbols: Tensor) -> Tensor:
    """(B, T) symbols followed by EOS or PAD -> symbols numbered from 0, followed by NO_SYMBOL."""
    return (symbols.long() - FIRST_SYMBOL).clamp_min(NO_SYMBOL)


def prepend_sos(symbols: Tensor) -> Tensor:
    """(B, T) -> (B, 1 + T) long."""
    return torch.nn.functional.pad(symbols.long(), (1, 0), value=SOS)


def all_strings(alphabet: str, length: int) -> Tensor:
    """(|alphabet|^length, length) symbols: every string of this length, in the alphabet's order."""
    place = len(alphabet) ** torch.arange(length - 1, -1, -1)
    return FIRST_SYMBOL + torch.arange(len(alphabet) ** length)[:, None] // place % len(alphabet)


def uniform_integers(high: Tensor, generator: torch.Generator | None) -> Tensor:
    """An integer drawn uniformly from 0..high for each entry of ``high``."""
    return (torch.rand(high.shape, generator=generator, dtype=torch.float64) * (high + 1)).long()
