"""Tokens of a text: how it is split into them, and the vocabulary."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL

UNK = "<UNK>"
SPECIAL = ("<SOS>", "<EOS>", "<PAD>")
VOCABULARY_FILE = "vocabulary.json"
CODE_POINTS = 0x110000
"""The number of Unicode code points."""


class Level(ABC):
    """How a text is split into tokens."""

    name: ClassVar[str]
    unit: ClassVar[str]
    """The tokens in words, in the plural."""
    has_unknown: ClassVar[bool]
    """Default of ``unknown``: whether tokens outside the vocabulary are read as <UNK>."""
    min_count: ClassVar[int]
    """Default of ``min_count``: how often a token of the vocabulary occurs in the training part at least."""

    @abstractmethod
    def split(self, text: str) -> list[str]:
        """The tokens of a text."""

    @abstractmethod
    def join(self, tokens: Iterable[str]) -> str:
        """The text of tokens: the inverse of ``split``, up to white space."""

    @abstractmethod
    def count(self, blocks: Iterable[str]) -> Counter[str]:
        """How often each token occurs.

        Args:
            blocks: consecutive pieces of the text, which may end within a token.
        """

    @abstractmethod
    def encoder(self, ids: dict[str, int], unknown: int) -> Callable[[str], np.ndarray]:
        """A function from a block of text to the (N,) ids of its tokens.

        Args:
            ids: of the known tokens.
            unknown: the id of all others.
        """

    def align(self, blocks: Iterable[str]) -> Iterator[str]:
        """The same text in blocks that do not end within a token."""
        return iter(blocks)


class Characters(Level):
    """Each character (Unicode code point) is a token, line ends included."""

    name, unit, has_unknown, min_count = "char", "characters", False, 1

    def split(self, text: str) -> list[str]:
        return list(text)

    def join(self, tokens: Iterable[str]) -> str:
        return "".join(tokens)

    def count(self, blocks: Iterable[str]) -> Counter[str]:
        counts = np.zeros(CODE_POINTS, np.int64)
        for block in blocks:
            counts += np.bincount(code_points(block), minlength=CODE_POINTS)
        return Counter({chr(code): int(counts[code]) for code in counts.nonzero()[0]})

    def encoder(self, ids: dict[str, int], unknown: int) -> Callable[[str], np.ndarray]:
        table = np.full(CODE_POINTS, unknown)
        for symbol, number in ids.items():
            table[ord(symbol)] = number
        return lambda block: table[code_points(block)]


class Words(Level):
    """Words and punctuation marks are tokens. White space is not predicted."""

    name, unit, has_unknown, min_count = "word", "words", True, 2

    def split(self, text: str) -> list[str]:
        return re.findall(r"\w+(?:['’-]\w+)*|[^\w\s]", text)

    def join(self, tokens: Iterable[str]) -> str:
        text = re.sub(r" ([.,;:!?)\]}])", r"\1", " ".join(tokens))
        return re.sub(r"([(\[{]) ", r"\1", text)

    def count(self, blocks: Iterable[str]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for block in self.align(blocks):
            counts.update(self.split(block))
        return counts

    def encoder(self, ids: dict[str, int], unknown: int) -> Callable[[str], np.ndarray]:
        def encode(block: str) -> np.ndarray:
            words = self.split(block)
            return np.fromiter((ids.get(word, unknown) for word in words), np.int64, len(words))

        return encode

    def align(self, blocks: Iterable[str]) -> Iterator[str]:
        rest = ""
        for block in blocks:
            text = rest + block
            end = max(text.rfind(" "), text.rfind("\n")) + 1
            yield text[:end]
            rest = text[end:]
        yield rest


LEVELS = {level.name: level for level in (Characters(), Words())}


def code_points(block: str) -> np.ndarray:
    """(N,) uint32."""
    return np.frombuffer(block.encode("utf-32-le"), np.uint32)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a text, and their ids."""

    level: Level
    symbols: tuple[str, ...]
    """Their ids count from FIRST_SYMBOL. <UNK> comes first if there is one."""

    @property
    def num_tokens(self) -> int:
        return FIRST_SYMBOL + len(self.symbols)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {symbol: FIRST_SYMBOL + i for i, symbol in enumerate(self.symbols)}

    @property
    def unknown(self) -> int | None:
        """The id of <UNK>, or None if unknown tokens are an error."""
        return self.ids.get(UNK)

    @property
    def beginning(self) -> int:
        """The token before an empty prompt: the end of a line or a sentence, else the most frequent token."""
        known = [symbol for symbol in ("\n", ".", *self.symbols) if symbol in self.ids and symbol != UNK]
        return self.ids[known[0]] if known else FIRST_SYMBOL

    def encode(self, text: str) -> list[int]:
        """The ids of a text's tokens.

        Raises:
            KeyError: a token is not in the vocabulary, which has no <UNK>.
        """
        tokens = self.level.split(text)
        return [self.ids[token] if self.unknown is None else self.ids.get(token, self.unknown) for token in tokens]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids."""
        return self.level.join(map(self.name, tokens))

    def decode_completion(self, tokens: list[int]) -> tuple[str, bool]:
        """The text of token ids before the first EOS, and whether there is an EOS."""
        finished = EOS in tokens
        return self.decode(tokens[: tokens.index(EOS)] if finished else tokens), finished

    def save(self, folder: Path) -> None:
        about = {"level": self.level.name, "symbols": self.symbols}
        (folder / VOCABULARY_FILE).write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Vocabulary:
        about = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
        return Vocabulary(LEVELS[about["level"]], tuple(about["symbols"]))

    def name(self, token: int) -> str:
        """The text of one token, such as <EOS> for a special token."""
        return (*SPECIAL, *self.symbols)[token] if token < FIRST_SYMBOL else self.symbols[token - FIRST_SYMBOL]
