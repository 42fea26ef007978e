from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from rule_extrapolation.core.errors import check_positive, check_seed
from rule_extrapolation.core.random import generator
from rule_extrapolation.grammars.exact.likelihood import memorised_loss
from rule_extrapolation.grammars.grammar import Grammar

TRAIN, VAL, TEST, SHUFFLE = range(4)
"""Random streams of the three sets of words and of the order of batches. The first three also name the sets."""


class TensorBatches:
    """Batches of rows. It replaces a DataLoader: the data is in memory, so worker processes would not help.

    ``state_dict`` contains the position, so that a resumed run continues within an epoch.

    Args:
        rows: a tensor, or an object that a tensor of row numbers indexes in the same way.
        shuffle_seed: shuffle the rows on every pass. None: keep their order.
    """

    def __init__(self, rows: Tensor, batch_size: int, shuffle_seed: int | None = None):
        self.rows, self.batch_size, self.shuffle_seed = rows, batch_size, shuffle_seed
        self.passes = self.batches = 0

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.batches >= len(self):
            self.passes, self.batches = self.passes + 1, 0
        rows, order = self.rows_of_pass(), torch.arange(len(self.rows))
        if self.shuffle_seed is not None:
            order = torch.randperm(len(order), generator=generator(self.shuffle_seed, SHUFFLE, self.passes))
        while self.batches < len(self):
            start = self.batches * self.batch_size
            self.batches += 1
            yield rows[order[start : start + self.batch_size]]

    def rows_of_pass(self) -> Tensor:
        """The rows of the current pass."""
        return self.rows

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes, "batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes, self.batches = state["passes"], state["batches"]


class GrammarDataModule(LightningDataModule):
    """Training, validation and test words of a language, in batches of (B, max_length + 2) tokens.

    If the language trains on each of its words once, these words are all three sets. Otherwise the sets are drawn
    independently.

    Args:
        grammar: makes the grammar from max_length: a Grammar class or a partial of one.
        max_length: the maximum number of symbols in a word.
        num_train, num_val, num_test: the number of words in each set, if words are drawn.
        seed: of the words.
        shuffle_seed: of their order in training.

    Raises:
        ConfigError: a size below 1, or a ``max_length`` that the grammar rejects.
    """

    conditional: ClassVar[bool] = False
    """Whether batches are prompts and completions, on which ``conditional`` models train."""

    carry_state: ClassVar[bool] = False
    """Whether each row of a batch continues the same row of the previous batch."""

    def __init__(
        self,
        grammar: Callable[..., Grammar],
        max_length: int = 32,
        num_train: int = 2048,
        num_val: int = 1024,
        num_test: int = 1024,
        batch_size: int = 128,
        seed: int = 0,
        shuffle_seed: int = 0,
    ):
        super().__init__()
        check_positive(num_train=num_train, num_val=num_val, num_test=num_test, batch_size=batch_size)
        check_seed(seed=seed, shuffle_seed=shuffle_seed)
        self.task = self.grammar = grammar(max_length=max_length)
        self.sizes = {TRAIN: num_train, VAL: num_val, TEST: num_test}
        self.batch_size, self.seed, self.shuffle_seed = batch_size, seed, shuffle_seed
        self.drawn: dict[int, Tensor] = {}

    def words(self, split: int) -> Tensor:
        """(N, max_length + 2) framed words of a set: TRAIN, VAL or TEST. They are the same on every call."""
        if split not in self.drawn:
            self.drawn[split] = self.grammar.dataset(self.sizes[split], generator(self.seed, split))
        return self.drawn[split]

    def reference_losses(self) -> dict[str, float | None]:
        """Losses to compare a model's with, in nats per target position, by their names in results.json, None if
        unknown."""
        return {
            "optimal_loss": self.grammar.optimal_loss,
            "optimal_loss_on_validation_words": self.optimal_loss_on(VAL),
            "optimal_loss_on_test_words": self.optimal_loss_on(TEST),
            "memorised_loss": memorised_loss(self.words(TRAIN)),
        }

    def optimal_loss_on(self, split: int) -> float | None:
        """The loss of the training distribution's own probabilities on the words of a set, or None if unknown."""
        if self.grammar.process is None:
            return None
        return -self.grammar.log_probability(self.words(split)).mean().item() / (self.grammar.max_length + 1)

    @property
    def tokens_at_once(self) -> int:
        """Tokens that a model reads in a training batch."""
        return min(self.batch_size, len(self.words(TRAIN))) * (self.grammar.max_length + 1)

    def train_dataloader(self) -> TensorBatches:
        return TensorBatches(self.words(TRAIN), self.batch_size, shuffle_seed=self.shuffle_seed)

    def val_dataloader(self) -> TensorBatches:
        return TensorBatches(self.words(VAL), self.batch_size)

    def test_dataloader(self) -> TensorBatches:
        return TensorBatches(self.words(TEST), self.batch_size)
