"""Text as tokens: characters or words, in a training, a validation and a test part that follow each other in the file.

A file is read as a stream, once for its vocabulary and once to be written as tokens into a cache folder; training maps
that into memory. SOS=0, EOS=1 and PAD=2 as in every language; then <UNK>, where there is one, and the vocabulary.
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
FORMAT = 3
"""Of the cache: another number where the same file and settings are to be written anew."""
BLOCK = 2**22
"""Bytes read at once."""
NEAR = 2**12
"""Bytes behind which a part's beginning is not moved to the next line's."""


@dataclass(frozen=True)
class TextSettings:
    """How a text is read. The fields are those of ``TextDataModule``."""

    level: str
    val_fraction: float
    test_fraction: float
    max_vocabulary: int
    min_count: int | None
    unknown: bool | None


@dataclass(frozen=True)
class Text:
    """A text as tokens in a folder: a file of the smallest integers for each part, and what they mean."""

    folder: Path
    about: dict[str, Any]
    """What text.json has: level and symbols; of each part how many tokens, characters and unknown tokens there are; and
    how many of each token."""

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(LEVELS[self.about["level"]], tuple(self.about["symbols"]))

    def tokens(self, part: str) -> np.memmap:
        """(N,) ids, mapped into memory."""
        return np.memmap(self.folder / f"{part}.tokens", dtype_of(self.vocabulary.num_tokens), "r")

    def num(self, part: str, what: str = "tokens") -> int:
        """How many ``tokens``, ``characters`` or ``unknown`` tokens a part has."""
        return self.about["parts"][part][what]


def dtype_of(num_tokens: int) -> np.dtype:
    return np.min_scalar_type(num_tokens - 1)


def read_text(path: str | None, settings: TextSettings, cache: str | None) -> Text:
    """A text as tokens, from the cache folder if the same content has been read with the same settings before.

    Raises:
        ConfigError: the file is no UTF-8 text or has no words, or a part holds what the vocabulary has not.
    """
    folder = Path(os.path.expanduser(cache)) if cache else default_cache()
    source = default_text(folder) if path is None else Path(path)
    about = {"format": FORMAT, "content": content_hash(source, *stamp(source)), **vars(settings)}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    target = folder / f"{text_name(path)}-{settings.level}-{key}"
    if not (target / "text.json").is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=folder))
        except OSError as error:
            raise ConfigError("cache", folder, f"cannot be written to ({error.strerror}); name another") from error
        try:
            (temporary / "text.json").write_text(json.dumps(write_tokens(source, settings, temporary)))
            put(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Text(target, json.loads((target / "text.json").read_text()))


def put(folder: Path, target: Path) -> None:
    """Move a complete folder into place, unless another process has been quicker."""
    try:
        folder.rename(target)
    except OSError:
        if not (target / "text.json").is_file():
            raise


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rule_extrapolation"


def default_text(folder: Path) -> Path:
    """English that every Python carries: the help on its language, as one file."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    path = folder / f"pydoc_topics-{hashlib.sha256(text).hexdigest()[:16]}.txt"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    return path


def stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache
def content_hash(path: Path, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tokens(path: Path, settings: TextSettings, folder: Path) -> dict[str, Any]:
    """Write the tokens of a text into a folder. Returns what text.json has."""
    level = LEVELS[settings.level]
    spans = dict(zip(PARTS, part_spans(path, settings.val_fraction, settings.test_fraction)))
    counts = level.count(decoded(path, *spans["training"]))
    symbols = chosen_symbols(counts, level, settings)
    if not counts:
        raise ConfigError("path", path, f"its training part has no {level.unit}; use a longer text")
    vocabulary = Vocabulary(level, symbols)
    parts = {part: write_part(path, span, part, vocabulary, folder) for part, span in spans.items()}
    counts = {part: sizes.pop("counts") for part, sizes in parts.items()}
    return {"level": level.name, "symbols": symbols, "parts": parts, "counts": counts}


def chosen_symbols(counts: Counter[str], level: Level, settings: TextSettings) -> list[str]:
    """The most frequent ones, equally frequent ones in their own order; <UNK> in front if there is to be one."""
    min_count = level.min_count if settings.min_count is None else settings.min_count
    frequent = [symbol for symbol, count in counts.items() if count >= min_count]
    frequent.sort(key=lambda symbol: (-counts[symbol], symbol))
    has_unknown = level.has_unknown if settings.unknown is None else settings.unknown
    return [UNK] * has_unknown + frequent[: settings.max_vocabulary]


def write_part(path: Path, span: tuple[int, int], part: str, vocabulary: Vocabulary, folder: Path) -> dict[str, Any]:
    """Write a part's tokens. Returns how many tokens, characters and unknown ones it has, and of each token how many.

    Raises:
        ConfigError: it holds what the vocabulary has not, and there is no <UNK>.
    """
    missing = vocabulary.num_tokens
    unknown = missing if vocabulary.unknown is None else vocabulary.unknown
    level, dtype = vocabulary.level, dtype_of(vocabulary.num_tokens)
    encode = level.encoder({symbol: id_ for symbol, id_ in vocabulary.ids.items() if symbol != UNK}, unknown)
    counts, characters = np.zeros(vocabulary.num_tokens + 1, np.int64), 0
    with open(folder / f"{part}.tokens", "wb") as file:
        for block in level.whole(decoded(path, *span)):
            tokens = encode(block)
            counts += np.bincount(tokens, minlength=len(counts))
            if counts[missing]:
                raise never_seen(block, part, vocabulary)
            file.write(tokens.astype(dtype).tobytes())
            characters += len(block)
    sizes = {"tokens": int(counts.sum()), "characters": characters, "unknown": int(counts[unknown])}
    return {**sizes, "counts": counts[:missing].tolist()}


def never_seen(block: str, part: str, vocabulary: Vocabulary) -> ConfigError:
    unseen = sorted(set(vocabulary.level.split(block)) - vocabulary.ids.keys())
    shown = ", ".join(map(repr, unseen[:5])) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
    fix = f"the {part} part holds {shown}, not in the training part's vocabulary; set true to read {UNK} there"
    return ConfigError("unknown", False, fix)


def part_spans(path: Path, val_fraction: float, test_fraction: float) -> list[tuple[int, int]]:
    """Where each part is, in bytes from and up to: by fractions of the file's size, moved on to where a line begins if
    one does nearby, else to where a character does."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        behind = (val_fraction + test_fraction, test_fraction)
        most = int(size * min(val_fraction, test_fraction) / 2)  # of which each part has half left
        cuts = [line_start(file, int(size * (1 - fraction)), most) for fraction in behind]
    return list(zip([0, *cuts], [*cuts, size]))


def line_start(file: Any, position: int, most: int) -> int:
    """Where a line begins, fewer than ``most`` bytes on; else where a character does."""
    file.seek(position)
    near = file.read(NEAR)
    newline = near.find(b"\n")
    if 0 <= newline < most:
        return position + newline + 1
    return position + next((i for i, byte in enumerate(near) if byte & 0xC0 != 0x80), 0)


def decoded(path: Path, start: int, stop: int) -> Iterator[str]:
    """The text between two bytes, block by block.

    Raises:
        ConfigError: it is no UTF-8 text.
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
                raise ConfigError("path", path, f"is no UTF-8 text: {error.reason}") from error
            if "\0" in text:
                raise ConfigError("path", path, "is no text: it holds a NUL byte")
            yield text


def unigram_loss(text: Text) -> float:
    """Cross-entropy in nats per token of the test part, its first token left out, if each token is as probable as it is
    frequent in the training part; each is counted once more than it is there, so that none is impossible."""
    training, test = (np.array(text.about["counts"][part]) for part in ("training", "test"))
    test[text.tokens("test")[0]] -= 1
    seen = training[FIRST_SYMBOL:] + 1
    return float(-(test[FIRST_SYMBOL:] * np.log(seen / seen.sum())).sum() / test.sum())
