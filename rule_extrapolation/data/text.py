"""Text as tokens, characters or words. The training, validation and test parts follow each other in the file.

A file is streamed twice: once to build the vocabulary and once to write its tokens to a cache folder, which training
maps into memory. SOS=0, EOS=1 and PAD=2 as in every language, followed by <UNK>, if there is one, and the vocabulary.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import FIRST_SYMBOL
from rule_extrapolation.data import text_name
from rule_extrapolation.data.vocabulary import LEVELS, UNK, Level, Vocabulary

PARTS = ("training", "validation", "test")
FORMAT = 4
"""Version of the cache. Another number makes all texts be tokenised again."""
BLOCK = 2**22
"""Bytes that are read at once."""
MAX_SHIFT = 2**12
"""A part begins with a line if one begins within this many bytes."""


@dataclass(frozen=True)
class TextSettings:
    """How a text is tokenised. ``TextDataModule`` explains the fields."""

    level: str
    val_fraction: float
    test_fraction: float
    max_vocabulary: int
    min_count: int | None
    unknown: bool | None


@dataclass(frozen=True)
class Text:
    """A tokenised text: a folder with text.json and a file for each part, which contains ids as small integers."""

    folder: Path
    about: dict[str, Any]
    """The contents of text.json: level, symbols, the numbers of tokens, characters and unknown tokens in each part, and
    how often each token occurs in it."""

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(LEVELS[self.about["level"]], tuple(self.about["symbols"]))

    def tokens(self, part: str) -> np.memmap:
        """(N,) ids of a part, mapped into memory."""
        return np.memmap(self.folder / f"{part}.tokens", dtype_of(self.vocabulary.num_tokens), "r")

    def num(self, part: str, what: str = "tokens") -> int:
        """The number of ``tokens``, ``characters`` or ``unknown`` tokens in a part."""
        return self.about["parts"][part][what]


def dtype_of(num_tokens: int) -> np.dtype:
    """The smallest integers that hold all ids."""
    return np.min_scalar_type(num_tokens - 1)


def read_text(path: str | None, settings: TextSettings, cache: str | None) -> Text:
    """Tokenise a text, or load it from the cache if the same content was tokenised with the same settings before.

    Args:
        path: a UTF-8 file. None: the default text.
        cache: the cache folder. None: the default folder.

    Raises:
        ConfigError: the file is not UTF-8 text or has no tokens; a part contains tokens that the vocabulary lacks; or
            the cache cannot be written.
    """
    folder = Path(os.path.expanduser(cache)) if cache else default_cache()
    source = default_text(folder) if path is None else Path(path)
    about = {"format": FORMAT, "content": content_hash(source, *file_stamp(source)), **vars(settings)}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    target = folder / f"{text_name(path)}-{settings.level}-{key}"
    if not (target / "text.json").is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=folder))
        except OSError as error:
            fix = f"cannot be written to ({error.strerror}); name another folder"
            raise ConfigError("cache", folder, fix) from error
        try:
            (temporary / "text.json").write_text(json.dumps(write_tokens(source, settings, temporary)))
            move_into_place(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Text(target, json.loads((target / "text.json").read_text()))


def move_into_place(folder: Path, target: Path) -> None:
    """Rename a complete folder, unless another process has already done so."""
    try:
        folder.rename(target)
    except OSError:
        if not (target / "text.json").is_file():
            raise


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rule_extrapolation"


def default_text(folder: Path) -> Path:
    """A file of English text that is part of every Python: the help on its language, ``pydoc_data.topics``."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    path = folder / f"pydoc_topics-{hashlib.sha256(text).hexdigest()[:16]}.txt"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    return path


def file_stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of modification in ns."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache
def content_hash(path: Path, size: int, modified: int) -> str:
    """SHA-256 of a file, computed once as long as its size and time of modification stay the same."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tokens(path: Path, settings: TextSettings, folder: Path) -> dict[str, Any]:
    """Write the tokens of a text into a folder. Returns the contents of text.json."""
    level = LEVELS[settings.level]
    spans = dict(zip(PARTS, part_spans(path, settings.val_fraction, settings.test_fraction)))
    counts = level.count(read_blocks(path, *spans["training"]))
    symbols = select_symbols(counts, level, settings)
    if not counts:
        raise ConfigError("path", path, f"its training part contains no {level.unit}; use a longer text")
    vocabulary = Vocabulary(level, symbols)
    # The training part, which is the longest, comes last: only the others can contain what the vocabulary lacks.
    written = {part: write_part(path, spans[part], part, vocabulary, folder) for part in reversed(PARTS)}
    parts = {part: written[part] for part in PARTS}
    counts = {part: sizes.pop("counts") for part, sizes in parts.items()}
    return {"level": level.name, "symbols": symbols, "parts": parts, "counts": counts}


def select_symbols(counts: Counter[str], level: Level, settings: TextSettings) -> list[str]:
    """The vocabulary by descending frequency, ties in the symbols' own order; <UNK> first if there is one."""
    min_count = level.min_count if settings.min_count is None else settings.min_count
    frequent = [symbol for symbol, count in counts.items() if count >= min_count]
    frequent.sort(key=lambda symbol: (-counts[symbol], symbol))
    has_unknown = level.has_unknown if settings.unknown is None else settings.unknown
    return [UNK] * has_unknown + frequent[: settings.max_vocabulary]


def write_part(path: Path, span: tuple[int, int], part: str, vocabulary: Vocabulary, folder: Path) -> dict[str, Any]:
    """Write a part's tokens to a file.

    Returns:
        The numbers of tokens, characters and unknown tokens, and the counts of each token.

    Raises:
        ConfigError: the part contains tokens that the vocabulary lacks, and there is no <UNK>.
    """
    missing = vocabulary.num_tokens
    unknown = missing if vocabulary.unknown is None else vocabulary.unknown
    level, dtype = vocabulary.level, dtype_of(vocabulary.num_tokens)
    encode = level.encoder({symbol: id_ for symbol, id_ in vocabulary.ids.items() if symbol != UNK}, unknown)
    counts, characters = np.zeros(vocabulary.num_tokens + 1, np.int64), 0
    with open(folder / f"{part}.tokens", "wb") as file:
        for block in level.align(read_blocks(path, *span)):
            tokens = encode(block)
            counts += np.bincount(tokens, minlength=len(counts))
            if counts[missing]:
                raise unknown_tokens_error(block, part, vocabulary)
            file.write(tokens.astype(dtype).tobytes())
            characters += len(block)
    sizes = {"tokens": int(counts.sum()), "characters": characters, "unknown": int(counts[unknown])}
    return {**sizes, "counts": counts[:missing].tolist()}


def unknown_tokens_error(block: str, part: str, vocabulary: Vocabulary) -> ConfigError:
    unseen = sorted(set(vocabulary.level.split(block)) - vocabulary.ids.keys())
    shown = ", ".join(map(repr, unseen[:5])) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
    fix = f"the {part} part contains {shown}, which the vocabulary lacks; set it to true to read them as {UNK}"
    return ConfigError("unknown", False, fix)


def part_spans(path: Path, val_fraction: float, test_fraction: float) -> list[tuple[int, int]]:
    """The first byte of each part and the one after its last. A byte order mark is in none.

    Fractions are of the file's size. A part begins at the next line if that is near, else at the next character.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        fractions_left = (val_fraction + test_fraction, test_fraction)
        max_shift = int(size * min(val_fraction, test_fraction) / 2)  # leaves at least half of each part
        starts = [part_start(file, int(size * (1 - fraction)), max_shift) for fraction in fractions_left]
        file.seek(0)
        first = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
    return list(zip([first, *starts], [*starts, size]))


def part_start(file: Any, position: int, max_shift: int) -> int:
    """The next byte at which a line begins if it is within ``max_shift`` bytes, else at which a character begins."""
    file.seek(position)
    following = file.read(MAX_SHIFT)
    newline = following.find(b"\n")
    if 0 <= newline < max_shift:
        return position + newline + 1
    return position + next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), 0)


def read_blocks(path: Path, start: int, stop: int) -> Iterator[str]:
    """The text between two bytes, block by block.

    Raises:
        ConfigError: it is not UTF-8 text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        file.seek(start)
        while start < stop:
            block = file.read(min(BLOCK, stop - start))
            start += len(block)
            try:
                text = decoder.decode(block, final=start == stop)
            except UnicodeDecodeError as error:
                raise ConfigError("path", path, f"is not UTF-8 text: {error.reason}") from error
            if "\0" in text:
                raise ConfigError("path", path, "is not a text file: it contains a NUL byte")
            yield text


def unigram_loss(text: Text) -> float:
    """Cross-entropy of the test part, without its first token, in nats per token under the unigram model.

    A token's probability is its relative frequency in the training part, with 1 added to each count.
    """
    training, test = (np.array(text.about["counts"][part]) for part in ("training", "test"))
    test[text.tokens("test")[0]] -= 1
    counts = training[FIRST_SYMBOL:] + 1
    return float(-(test[FIRST_SYMBOL:] * np.log(counts / counts.sum())).sum() / test.sum())
