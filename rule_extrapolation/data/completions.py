from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.random import generator
from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.data.grammar_data import TEST, TRAIN, VAL, GrammarDataModule, TensorBatches
from rule_extrapolation.grammars.grammar import Grammar, uniform_integers

SPLITS = 4
"""The random stream of the positions at which words are split. ``grammar_data`` uses streams 0 to 3."""


class CompletionDataModule(GrammarDataModule):
    """Words of a language, each split into a prompt (SOS and k symbols) and its completion (the other symbols and EOS).

    Given a word of l symbols, k ~ U{min(min_prompt_length, l)..l}. Training words are split again in every epoch;
    validation and test words are split once. Batches are (B, 2, max_length + 1) tokens: prompts and completions, both
    followed by PAD.

    Args:
        grammar: makes the grammar from max_length: a Grammar class or a partial of one.
        max_length: the maximum number of symbols in a word.
        min_prompt_length: the minimum number of symbols in a prompt.
        num_train, num_val, num_test: the number of words in each set. If the language trains on each of its words once,
            all words are repeated until there are at least this many, and each copy is split independently.
        seed: of the words and the splits.
        shuffle_seed: of their order in training.

    Raises:
        ConfigError: as GrammarDataModule, or a ``min_prompt_length`` above ``max_length``.
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
        shuffle_seed: int = 0,
    ):
        super().__init__(grammar, max_length, num_train, num_val, num_test, batch_size, seed, shuffle_seed)
        if not 0 <= min_prompt_length <= max_length:
            raise ConfigError("min_prompt_length", min_prompt_length, f"must be from 0 to max_length={max_length}")
        self.min_prompt_length = min_prompt_length

    def reference_losses(self) -> dict[str, float | None]:
        """All None: the length of a prompt is evidence about the length of its word, which the language's probabilities
        ignore."""
        return dict.fromkeys(super().reference_losses())

    def words(self, split: int) -> Tensor:
        words = super().words(split)
        return words.repeat(-(-self.sizes[split] // len(words)), 1)

    def pairs(self, split: int, epoch: int = 0) -> Tensor:
        """(N, 2, max_length + 1) prompts and completions, as split in the given epoch."""
        words = self.words(split)
        lengths = (words != PAD).sum(1) - 2
        shortest = lengths.clamp_max(self.min_prompt_length)
        positions = uniform_integers(lengths - shortest, generator(self.seed, SPLITS, split, epoch))
        return split_words(words, shortest + positions)

    def train_dataloader(self) -> RedrawnBatches:
        return RedrawnBatches(partial(self.pairs, TRAIN), self.batch_size, shuffle_seed=self.shuffle_seed)

    def val_dataloader(self) -> TensorBatches:
        return TensorBatches(self.pairs(VAL), self.batch_size)

    def test_dataloader(self) -> TensorBatches:
        return TensorBatches(self.pairs(TEST), self.batch_size)


class RedrawnBatches(TensorBatches):
    """Batches of rows that are drawn again for each pass.

    Args:
        draw: maps the number of a pass, from 0 on, to its rows.
    """

    def __init__(self, draw: Callable[[int], Tensor], batch_size: int, shuffle_seed: int):
        super().__init__(draw(0), batch_size, shuffle_seed)
        self.draw = draw

    def rows_of_pass(self) -> Tensor:
        return self.draw(self.passes)


def split_words(words: Tensor, prompt_lengths: Tensor) -> Tensor:
    """Split words into prompts and completions.

    Args:
        words: (N, T + 1) framed words.
        prompt_lengths: (N,) symbols in each prompt.

    Returns:
        (N, 2, T): SOS and the prompt's symbols, and the other symbols and EOS, both followed by PAD.
    """
    positions = torch.arange(words.shape[1] - 1)
    prompts = words[:, :-1].where(positions <= prompt_lengths[:, None], PAD)
    sources = prompt_lengths[:, None] + 1 + positions
    completions = F.pad(words, (0, len(positions)), value=PAD).gather(1, sources)
    return torch.stack([prompts, completions], 1)
