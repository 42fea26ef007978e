from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.random import generator
from rule_extrapolation.data.grammar_data import TEST, TRAIN, VAL, GrammarDataModule, TensorBatches
from rule_extrapolation.grammars.grammar import PAD, Grammar, uniform_integers

POSITIONS = 4
"""The random stream of where words are split, beside those of grammar_data."""


class CompletionDataModule(GrammarDataModule):
    """The words of a language, each split into a prompt (SOS and k symbols) and its completion (the rest and EOS).

    k is drawn evenly from ``min_prompt_length``, or the word's length if that is less, to the word's length: anew on
    every pass over the training words, and once for validation and test. Batches are (B, 2, max_length + 1) tokens:
    prompts and completions, both followed by PAD.

    Args:
        min_prompt_length: the fewest symbols of a prompt.
        num_train, num_val, num_test: words in each set; where the language trains on each of its words once, they come
            as often as it takes, each time split on its own.

    Raises:
        ConfigError: as GrammarDataModule; or no word has that many symbols.
    """

    conditional = True

    def __init__(
        self,
        grammar: Callable[..., Grammar],
        max_length: int = 32,
        min_prompt_length: int = 0,
        num_train: int = 2048,
        num_val: int = 1024,
        num_test: int = 1024,
        batch_size: int = 128,
        seed: int = 0,
    ):
        super().__init__(grammar, max_length, num_train, num_val, num_test, batch_size, seed)
        if not 0 <= min_prompt_length <= max_length:
            raise ConfigError("min_prompt_length", min_prompt_length, f"must be from 0 to max_length={max_length}")
        self.min_prompt_length = min_prompt_length

    def reference_losses(self) -> dict[str, float | None]:
        """None: how long a prompt is says something of how long its word is, and the language's own probabilities leave
        that out."""
        return dict.fromkeys(super().reference_losses())

    def words(self, split: int) -> Tensor:
        words = super().words(split)
        return words.repeat(-(-self.sizes[split] // len(words)), 1)

    def pairs(self, split: int, epoch: int = 0) -> Tensor:
        """(N, 2, max_length + 1): prompts and completions, split as in that pass over the words."""
        words = self.words(split)
        lengths = (words != PAD).sum(1) - 2
        least = lengths.clamp_max(self.min_prompt_length)
        return split_words(words, least + uniform_integers(lengths - least, self.positions(split, epoch)))

    def positions(self, split: int, epoch: int) -> torch.Generator:
        return generator(self.seed, POSITIONS, split, epoch)

    def train_dataloader(self) -> RedrawnBatches:
        return RedrawnBatches(partial(self.pairs, TRAIN), self.batch_size, shuffle_seed=self.seed)

    def val_dataloader(self) -> TensorBatches:
        return TensorBatches(self.pairs(VAL), self.batch_size)

    def test_dataloader(self) -> TensorBatches:
        return TensorBatches(self.pairs(TEST), self.batch_size)


class RedrawnBatches(TensorBatches):
    """Batches of rows that are drawn for each pass, from its number on."""

    def __init__(self, draw: Callable[[int], Tensor], batch_size: int, shuffle_seed: int):
        super().__init__(draw(0), batch_size, shuffle_seed)
        self.draw = draw

    def rows_of_pass(self) -> Tensor:
        return self.draw(self.passes)


def split_words(words: Tensor, symbols: Tensor) -> Tensor:
    """Split (N, T + 1) framed words behind so many symbols (N,) -> (N, 2, T): SOS and those; the rest and EOS."""
    at = torch.arange(words.shape[1] - 1)
    prompts = words[:, :-1].where(at <= symbols[:, None], PAD)
    behind = symbols[:, None] + 1 + at
    completions = F.pad(words, (0, len(at)), value=PAD).gather(1, behind)
    return torch.stack([prompts, completions], 1)
