from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError, check_choice, check_positive, check_seed, check_text
from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.data import text_name
from rule_extrapolation.data.grammar_data import TensorBatches
from rule_extrapolation.data.text import PARTS, Text, TextSettings, read_text, unigram_loss
from rule_extrapolation.data.vocabulary import Vocabulary


class TextTask:
    """What a run on a text needs in the place of a grammar: a name, tokens, and no rules."""

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

    def about(self) -> dict[str, Any]:
        """What a run's results.json says of it."""
        of_text = {
            "level": self.vocabulary.level.name,
            "num_tokens": self.num_tokens,
            "parts": self.text.about["parts"],
        }
        return {"grammar": self.name, "label": None, "rules": {}, "text": of_text}


@dataclass
class SavedText:
    """What a run has kept of its text, with which its model can be used."""

    task: TextTask
    conditional: ClassVar[bool] = False
    carry_state: ClassVar[bool] = False


class Chunks:
    """The rows of a text, ``length + 1`` tokens each.

    A row's last token is the first of the next row in the text, so that each token but the text's first is predicted
    exactly once. What a row lacks at the end is PAD.

    With ``streams``, the text is cut into that many stretches, and row ``j * streams + i`` is chunk j of stretch i: in
    batches of ``streams`` rows, each row of a batch goes on where it stopped in the batch before.

    Args:
        tokens: (N,) of any integer type, N from 2; a np.memmap is read only as far as rows are asked for.
        length: tokens that a row predicts.
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
        places = (stream * self.span + chunk * self.length)[:, None] + np.arange(self.length + 1)
        ends = np.minimum((stream + 1) * self.span + 1, len(self.tokens))[:, None]
        tokens = self.tokens[np.minimum(places, len(self.tokens) - 1)].astype(np.int64)
        return torch.from_numpy(np.where(places < ends, tokens, PAD))


class TextDataModule(LightningDataModule):
    """A text file as (B, max_length + 1) rows of tokens; its parts follow each other in the file.

    Args:
        path: a UTF-8 file; None: the help on Python's language, pydoc_data.topics.
        level: what a token is, a character or a word.
        max_length: tokens of a chunk.
        batch_size: chunks in a batch; with ``carry_state``, stretches of the text that are read side by side.
        carry_state: each chunk begins with the state that the one before it has ended with. Else they are independent,
            and come in a new order on every pass.
        val_fraction, test_fraction: of the file's bytes.
        max_vocabulary: the most frequent tokens of the training part are kept, so many at most,
        min_count: and those that it has so often; None: 1 for characters, 2 for words.
        unknown: whether other tokens are read as <UNK>; else they are an error. None: only words are.
        cache: the folder where texts are kept as tokens, by content and settings.
        seed: of the chunks' order.
        grammar: there is none; the program gives one that has been asked for.

    Raises:
        ConfigError: sizes below 1, fractions that leave nothing, a file that is missing, empty, no text or too short, a
            part that holds what the vocabulary has not.
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
        seed: int = 0,
        grammar: Callable[..., Any] | None = None,
    ):
        super().__init__()
        if grammar is not None:
            raise ConfigError("grammar", grammar.func.name, "a text has no language; leave grammar= or data=text out")
        check_choice(["char", "word"], level=level)
        check_positive(max_length=max_length, batch_size=batch_size, max_vocabulary=max_vocabulary)
        check_positive(val_fraction=val_fraction, test_fraction=test_fraction)
        if min_count is not None:
            check_positive(min_count=min_count)
        if val_fraction + test_fraction >= 1:
            raise ConfigError("test_fraction", test_fraction, "and val_fraction leave nothing to train on; set less")
        check_seed(seed=seed)
        check_text(path)
        settings = TextSettings(level, val_fraction, test_fraction, max_vocabulary, min_count, unknown)
        self.text = read_text(path, settings, cache)
        self.task = TextTask(text_name(path), self.text.vocabulary, self.text)
        self.max_length, self.batch_size, self.carry_state, self.seed = max_length, batch_size, carry_state, seed
        self.check_long_enough(path)

    def check_long_enough(self, path: str | None) -> None:
        rows = {"training": self.batch_size}
        for part in PARTS:
            least, tokens = rows.get(part, 1) * self.max_length + 1, self.text.num(part)
            if tokens < least:
                unit = self.task.vocabulary.level.unit
                fix = f"its {part} part has {tokens:,} {unit}, and {least:,} are needed; use a longer text, or less "
                raise ConfigError("path", path, fix + ("batch_size or max_length" if part in rows else "max_length"))

    @staticmethod
    def saved(name: str, folder: Path) -> SavedText:
        """What is in a run's folder: the text need not be there any more."""
        return SavedText(TextTask(name, Vocabulary.load(folder)))

    def reference_losses(self) -> dict[str, float | None]:
        """What a loss is held against, by name in results.json."""
        return {"unigram_loss": unigram_loss(self.text)}

    @property
    def tokens_at_once(self) -> int:
        """How many tokens a model reads in a batch of training."""
        return self.batch_size * self.max_length

    def batches(self, part: str, shuffle_seed: int | None = None) -> TensorBatches:
        tokens = self.text.tokens(part)
        if self.carry_state:
            return TensorBatches(Chunks(tokens, self.max_length, streams=self.batch_size), self.batch_size)
        return TensorBatches(Chunks(tokens, self.max_length), self.batch_size, shuffle_seed)

    def train_dataloader(self) -> TensorBatches:
        return self.batches("training", shuffle_seed=self.seed)

    def val_dataloader(self) -> TensorBatches:
        return self.batches("validation")

    def test_dataloader(self) -> TensorBatches:
        return self.batches("test")
