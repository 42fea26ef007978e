from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError, check_choice, check_positive, check_seed
from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.data import text_name
from rule_extrapolation.data.grammar_data import TensorBatches
from rule_extrapolation.data.text import PARTS, Text, TextSettings, read_text, unigram_loss
from rule_extrapolation.data.vocabulary import Vocabulary


def check_text(path: str | None) -> None:
    """Raise a ConfigError if the path is given and is not a text file, judged by its first 64 KiB."""
    if path is None:
        return
    file = Path(path)
    if not file.is_file():
        fix = "is a folder; name a text file" if file.is_dir() else "there is no such file; name a text file"
        raise ConfigError("path", path, fix)
    try:
        with file.open("rb") as stream:
            beginning = stream.read(2**16)
    except OSError as error:
        raise ConfigError("path", path, f"cannot be read: {error.strerror}") from error
    if not beginning.strip():
        raise ConfigError("path", path, "is empty; name a file that contains text")
    if b"\0" in beginning:
        raise ConfigError("path", path, "is not a text file: it contains NUL bytes; name a UTF-8 file")


class TextTask:
    """The task of a run on a text, which takes the place of a grammar. It has a vocabulary but no rules.

    Args:
        text: the tokenised text, or None if only the run folder is at hand.
    """

    kind = "text"
    label = process = None
    rules: ClassVar[dict[str, str]] = {}
    acceptors: ClassVar[dict[str, Any]] = {}

    def __init__(self, name: str, vocabulary: Vocabulary, text: Text | None = None):
        self.name, self.vocabulary, self.text = name, vocabulary, text

    @property
    def num_tokens(self) -> int:
        return self.vocabulary.num_tokens

    @property
    def level(self) -> str:
        return f"{self.vocabulary.level.unit}, {self.num_tokens:,} tokens"

    @property
    def unit(self) -> str:
        return self.vocabulary.level.unit

    def encode_prompt(self, prompt: str) -> Tensor:
        """A prompt as (1, P) tokens. An empty prompt becomes the end of a line, after which a new one begins.

        Raises:
            ConfigError: a token outside a vocabulary that has no <UNK>.
        """
        try:
            tokens = self.vocabulary.encode(prompt) or [self.vocabulary.beginning]
        except KeyError as error:
            known = "".join(self.vocabulary.symbols)
            fix = f"{error.args[0]!r} is not in the vocabulary of {self.name}: {known!r}"
            raise ConfigError("prompt", prompt, fix) from error
        return torch.tensor([tokens])

    def judge_completion(self, tokens: Tensor, prompt_length: int) -> tuple[str, bool, dict[str, bool]]:
        """(1, P + new) tokens -> the completion as text, whether it contains EOS, and no rules."""
        return *self.vocabulary.decode_completion(tokens[0, prompt_length:].tolist()), {}

    def about(self) -> dict[str, Any]:
        """The entries that describe the text in results.json."""
        text = {
            "level": self.vocabulary.level.name,
            "num_tokens": self.num_tokens,
            "parts": self.text.about["parts"],
        }
        return {"grammar": self.name, "label": None, "rules": {}, "text": text}


@dataclass
class SavedText:
    """The part of a run's data that its folder preserves: enough to use the model without the text."""

    task: TextTask
    conditional: ClassVar[bool] = False
    carry_state: ClassVar[bool] = False


class Chunks:
    """The rows of a text, of ``length + 1`` tokens each.

    A row's last token is the first token of the next row, so that every token but the text's first is predicted exactly
    once. A row at the end of the text or of a stretch is padded with PAD.

    With ``streams``, the text is divided into this many stretches, and row ``j * streams + i`` is chunk j of stretch i.
    In batches of ``streams`` rows, each row thus continues the same row of the previous batch.

    Args:
        tokens: (N,) of any integer type with N >= 2. Of a np.memmap, only the rows that are used are read.
        length: the number of tokens that a row predicts.
        streams: the number of stretches. None: rows are consecutive chunks of the text.
    """

    def __init__(self, tokens: np.ndarray, length: int, streams: int | None = None):
        self.tokens, self.length = tokens, length
        predicted = len(tokens) - 1
        self.streams = -(-predicted // length) if streams is None else streams
        self.span = length if streams is None else -(-predicted // streams)

    def __len__(self) -> int:
        return self.streams * -(-self.span // self.length)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(B,) -> (B, length + 1) long."""
        chunk, stream = np.divmod(rows.numpy(), self.streams)
        positions = (stream * self.span + chunk * self.length)[:, None] + np.arange(self.length + 1)
        ends = np.minimum((stream + 1) * self.span + 1, len(self.tokens))[:, None]
        tokens = self.tokens[np.minimum(positions, len(self.tokens) - 1)].astype(np.int64)
        return torch.from_numpy(np.where(positions < ends, tokens, PAD))


class TextDataModule(LightningDataModule):
    """A text file in batches of (B, max_length + 1) tokens. Its three parts follow each other in the file.

    Args:
        path: a UTF-8 file. None: the help on Python's language, ``pydoc_data.topics``.
        level: whether a token is a character or a word.
        max_length: the number of tokens in a chunk.
        batch_size: the number of chunks in a batch. With ``carry_state``, the text is divided into this many stretches,
            which are read in parallel.
        carry_state: each chunk begins with the final state of the chunk before it. If false, chunks are independent and
            are shuffled in every epoch.
        val_fraction, test_fraction: of the file's bytes.
        max_vocabulary: the maximum size of the vocabulary, which consists of the most frequent tokens of the training
            part.
        min_count: rarer tokens are omitted from the vocabulary. None: 1 for characters, 2 for words.
        unknown: whether tokens outside the vocabulary are read as <UNK>. If false, they are an error. None: true for
            words.
        cache: the folder of tokenised texts. None: a folder in the user's cache.
        shuffle_seed: of the order of chunks.
        grammar: must be None; it exists to report a grammar given by mistake.

    Raises:
        ConfigError: sizes below 1; fractions that leave no training part; a file that is missing, empty, not text or
            too short; a part that contains tokens outside the vocabulary, without ``unknown``.
    """

    conditional = False

    def __init__(
        self,
        path: str | None = None,
        level: Literal["char", "word"] = "char",
        max_length: int = 128,
        batch_size: int = 32,
        carry_state: bool = False,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        max_vocabulary: int = 10_000,
        min_count: int | None = None,
        unknown: bool | None = None,
        cache: str | None = None,
        shuffle_seed: int = 0,
        grammar: Callable[..., Any] | None = None,
    ):
        super().__init__()
        if grammar is not None:
            raise ConfigError("grammar", grammar.func.name, "a text has no grammar; leave out grammar= or data=text")
        check_choice(["char", "word"], level=level)
        check_positive(max_length=max_length, batch_size=batch_size, max_vocabulary=max_vocabulary)
        check_positive(val_fraction=val_fraction, test_fraction=test_fraction)
        if min_count is not None:
            check_positive(min_count=min_count)
        if val_fraction + test_fraction >= 1:
            raise ConfigError("test_fraction", test_fraction, "must be less than 1 - val_fraction")
        check_seed(shuffle_seed=shuffle_seed)
        check_text(path)
        settings = TextSettings(level, val_fraction, test_fraction, max_vocabulary, min_count, unknown)
        self.text = read_text(path, settings, cache)
        self.task = TextTask(text_name(path), self.text.vocabulary, self.text)
        self.max_length, self.batch_size = max_length, batch_size
        self.carry_state, self.shuffle_seed = carry_state, shuffle_seed
        self.check_long_enough(path)

    def check_long_enough(self, path: str | None) -> None:
        """Raise a ConfigError unless training has a full batch and the other parts have a full chunk."""
        for part in PARTS:
            rows, keys = (self.batch_size, "batch_size or max_length") if part == "training" else (1, "max_length")
            needed, tokens = rows * self.max_length + 1, self.text.num(part)
            if tokens < needed:
                unit = self.task.vocabulary.level.unit
                fix = f"its {part} part has {tokens:,} {unit} but needs {needed:,}; use a longer text or lower {keys}"
                raise ConfigError("path", path, fix)

    @staticmethod
    def saved(name: str, folder: Path) -> SavedText:
        """Load what a run folder preserves of its text, ``name``."""
        return SavedText(TextTask(name, Vocabulary.load(folder)))

    def reference_losses(self) -> dict[str, float | None]:
        """Losses to compare a model's with, in nats per token, by their names in results.json."""
        return {"unigram_loss": unigram_loss(self.text)}

    @property
    def tokens_at_once(self) -> int:
        """Tokens that a model reads in a training batch."""
        return self.batch_size * self.max_length

    def batches(self, part: str, shuffle_seed: int | None = None) -> TensorBatches:
        """The batches of a part. Only independent chunks are shuffled."""
        tokens = self.text.tokens(part)
        if self.carry_state:
            return TensorBatches(Chunks(tokens, self.max_length, streams=self.batch_size), self.batch_size)
        return TensorBatches(Chunks(tokens, self.max_length), self.batch_size, shuffle_seed)

    def train_dataloader(self) -> TensorBatches:
        return self.batches("training", shuffle_seed=self.shuffle_seed)

    def val_dataloader(self) -> TensorBatches:
        return self.batches("validation")

    def test_dataloader(self) -> TensorBatches:
        return self.batches("test")
