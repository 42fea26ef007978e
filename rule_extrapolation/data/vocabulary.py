"""What a token of a text is, and which there are."""

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

from rule_extrapolation.core.tokens import FIRST_SYMBOL

UNK = "<UNK>"
SPECIAL = ("<SOS>", "<EOS>", "<PAD>")
VOCABULARY_FILE = "vocabulary.json"
CODE_POINTS = 0x110000
"""That Unicode has."""


class Level(ABC):
    """What a token of a text is."""

    name: ClassVar[str]
    unit: ClassVar[str]
    has_unknown: ClassVar[bool]
    """Whether what is not in the vocabulary is read as <UNK>, if the settings do not say."""
    min_count: ClassVar[int]
    """How often the training part has what is in the vocabulary, if the settings do not say."""

    @abstractmethod
    def split(self, text: str) -> list[str]:
        """The tokens of a text."""

    @abstractmethod
    def join(self, tokens: Iterable[str]) -> str:
        """A text of tokens."""

    @abstractmethod
    def count(self, blocks: Iterable[str]) -> Counter[str]:
        """How often each token is there."""

    @abstractmethod
    def encoder(self, ids: dict[str, int], unknown: int) -> Callable[[str], np.ndarray]:
        """A function from a block of text to its tokens' ids, ``unknown`` for what has none."""

    def whole(self, blocks: Iterable[str]) -> Iterator[str]:
        """The same text in blocks that no token goes beyond."""
        return iter(blocks)


class Characters(Level):
    """Each character is a token: code points, line ends as they are."""

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
    """Words and punctuation marks are tokens. White space is none, and so is not predicted."""

    name, unit, has_unknown, min_count = "word", "words", True, 2

    def split(self, text: str) -> list[str]:
        return re.findall(r"\w+(?:['’-]\w+)*|[^\w\s]", text)

    def join(self, tokens: Iterable[str]) -> str:
        text = re.sub(r" ([.,;:!?)\]}])", r"\1", " ".join(tokens))
        return re.sub(r"([(\[{]) ", r"\1", text)

    def count(self, blocks: Iterable[str]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for block in self.whole(blocks):
            counts.update(self.split(block))
        return counts

    def encoder(self, ids: dict[str, int], unknown: int) -> Callable[[str], np.ndarray]:
        def encode(block: str) -> np.ndarray:
            words = self.split(block)
            return np.fromiter((ids.get(word, unknown) for word in words), np.int64, len(words))

        return encode

    def whole(self, blocks: Iterable[str]) -> Iterator[str]:
        rest = ""
        for block in blocks:
            text = rest + block
            end = max(text.rfind(" "), text.rfind("\n")) + 1
            yield text[:end]
            rest = text[end:]
        yield rest


LEVELS = {level.name: level for level in (Characters(), Words())}


def code_points(block: str) -> np.ndarray:
    return np.frombuffer(block.encode("utf-32-le"), np.uint32)


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens a text has, by id."""

    level: Level
    symbols: tuple[str, ...]
    """From FIRST_SYMBOL on, <UNK> first if there is one."""

    @property
    def num_tokens(self) -> int:
        return FIRST_SYMBOL + len(self.symbols)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {symbol: FIRST_SYMBOL + i for i, symbol in enumerate(self.symbols)}

    @property
    def unknown(self) -> int | None:
        return self.ids.get(UNK)

    @property
    def beginning(self) -> int:
        """What an empty prompt stands behind: a line or a sentence, else the most frequent token."""
        known = [symbol for symbol in ("\n", ".", *self.symbols) if symbol in self.ids and symbol != UNK]
        return self.ids[known[0]] if known else FIRST_SYMBOL

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            KeyError: a symbol that the vocabulary has not, where there is no <UNK>.
        """
        tokens = self.level.split(text)
        return [self.ids[token] if self.unknown is None else self.ids.get(token, self.unknown) for token in tokens]

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens."""
        return self.level.join(map(self.name, tokens))

    def save(self, folder: Path) -> None:
        about = {"level": self.level.name, "symbols": self.symbols}
        (folder / VOCABULARY_FILE).write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Vocabulary:
        about = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
        return Vocabulary(LEVELS[about["level"]], tuple(about["symbols"]))

    def name(self, token: int) -> str:
        return (*SPECIAL, *self.symbols)[token] if token < FIRST_SYMBOL else self.symbols[token - FIRST_SYMBOL]
