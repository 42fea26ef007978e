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


class TensorBatches:
    """Batches of rows, in a new order on every pass if there is a seed.

    The data is in memory already, so there are no worker processes; the position is in the state, so that an
    interrupted pass goes on where it stopped.

    Args:
        rows: a tensor, or what is indexed by a tensor of row numbers as one is.
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
        """What the pass under way takes its batches from."""
        return self.rows

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes, "batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes, self.batches = state["passes"], state["batches"]


class GrammarDataModule(LightningDataModule):
    """Training, validation and test words of a language, as (B, max_length + 2) token rows.

    Where the language trains on each of its words once, all three sets are those words; else each is drawn on its own.

    Args:
        grammar: makes the grammar from max_length: a Grammar class, or a partial of one with its options.
        max_length: the most symbols a word has.
        num_train, num_val, num_test: words in each set.
        seed: of the words and of the order they come in.

    Raises:
        ConfigError: a size below 1, or a max_length that the grammar refuses.
    """

    conditional: ClassVar[bool] = False
    """Whether a batch is of prompts and completions, which models that are ``conditional`` train on."""

    carry_state: ClassVar[bool] = False
    """Whether rows go on where those of the batch before have ended."""

    def __init__(
        self,
        grammar: Callable[..., Grammar],
        max_length: int = 32,
        num_train: int = 2048,
        num_val: int = 1024,
        num_test: int = 1024,
        batch_size: int = 128,
        seed: int = 0,
    ):
        super().__init__()
        check_positive(num_train=num_train, num_val=num_val, num_test=num_test, batch_size=batch_size)
        check_seed(seed=seed)
        self.task = self.grammar = grammar(max_length=max_length)
        self.sizes = {TRAIN: num_train, VAL: num_val, TEST: num_test}
        self.batch_size, self.seed = batch_size, seed
        self.drawn: dict[int, Tensor] = {}

    def words(self, split: int) -> Tensor:
        """(N, max_length + 2) framed words, the same on every call."""
        if split not in self.drawn:
            self.drawn[split] = self.grammar.dataset(self.sizes[split], generator(self.seed, split))
        return self.drawn[split]

    def reference_losses(self) -> dict[str, float | None]:
        """What a loss is held against, by name in results.json; None where it is not known."""
        grammar, optimal_on_test = self.grammar, None
        if grammar.process is not None:
            optimal_on_test = -grammar.log_probability(self.words(TEST)).mean().item() / (grammar.max_length + 1)
        return {
            "optimal_loss": grammar.optimal_loss,
            "optimal_loss_on_test_words": optimal_on_test,
            "memorised_loss": memorised_loss(self.words(TRAIN)),
        }

    @property
    def tokens_at_once(self) -> int:
        """How many tokens a model reads in a batch of training."""
        return min(self.batch_size, len(self.words(TRAIN))) * (self.grammar.max_length + 1)

    def train_dataloader(self) -> TensorBatches:
        return TensorBatches(self.words(TRAIN), self.batch_size, shuffle_seed=self.seed)

    def val_dataloader(self) -> TensorBatches:
        return TensorBatches(self.words(VAL), self.batch_size)

    def test_dataloader(self) -> TensorBatches:
        return TensorBatches(self.words(TEST), self.batch_size)
