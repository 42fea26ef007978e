"""What a trained model does with other prompts, other decoding, and words longer than any in training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.grammars.chance import chance_levels
from rule_extrapolation.grammars.grammar import EOS, PAD, Grammar
from rule_extrapolation.grammars.judging import accuracies, judge_completions, judged_rows
from rule_extrapolation.inference.decoding import Decoder, Greedy, Sample
from rule_extrapolation.models.language_model import LanguageModel

DECODERS = {"greedy": Greedy, "sample": Sample}
ROWS = 4096
"""Prompts completed at once, at most: the memory for their states is bounded so."""
TOKENS = 2**15
"""And tokens read at once."""
DRAWS, MOST_DRAWS = 4096, 8 * 4096
"""Words drawn at once, and in all, to find some of one length."""


def make_decoder(own: Decoder, name: str | None, **given: float | None) -> Decoder:
    """A run's own decoder, or the one of that name, with what is given in place of the run's settings.

    Raises:
        ConfigError: a value that the decoder refuses, or a temperature for a decoder that has none.
    """
    make = type(own) if name is None else DECODERS[name]
    takes = inspect.signature(make).parameters
    if given["temperature"] is not None and "temperature" not in takes:
        raise ConfigError("temperature", given["temperature"], "greedy decoding has none; set decoding=sample")
    settings = {key: getattr(own, key) for key in takes if hasattr(own, key)}
    return make(**settings | {key: value for key, value in given.items() if value is not None and key in takes})


def complete(model: LanguageModel, prompts: Tensor, decoder: Decoder, samples: int = 1) -> Tensor:
    """(N, P) prompts -> (N * samples, P + new): that many completions of each prompt, one after the other."""
    generator = decoder.make_generator()
    parts = [decoder(model, part, generator) for part in prompts.repeat_interleave(samples, 0).split(ROWS)]
    # A part ends early only if all of it has finished: PAD is what would have followed.
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1]), value=PAD) for part in parts])


@torch.no_grad()
def probabilities(model: LanguageModel, completions: Tensor, prompt_length: int) -> Tensor:
    """(N, P + new) completions of prompts of P tokens -> (N,) float64: how probable the model finds what is added.

    That is the product of the tokens' probabilities, up to EOS and EOS included; of an unfinished completion, the
    probability that one begins so.
    """
    added = completions[:, prompt_length:]
    logits = model.continuation(completions[:, :prompt_length], added).double()
    is_eos = (added == EOS).long()
    behind_eos = is_eos.cumsum(1) > is_eos
    return (-F.cross_entropy(logits, added, reduction="none").masked_fill(behind_eos, 0).sum(1)).exp()


def evaluate_prompts(
    grammar: Grammar, model: LanguageModel, decoder: Decoder, samples: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Complete a grammar's prompt sets. Returns what results.json has of it, and the judged completions."""
    completions = {name: complete(model, prompts, decoder, samples) for name, prompts in grammar.prompts.items()}
    test: dict[str, float] = {}
    for name, tokens in completions.items():
        test |= accuracies(judge_completions(grammar, tokens, grammar.prompts[name].shape[1]), f"Test/{name}")
    chance = chance_levels(grammar, lambda prompts: decoder.budget(model, prompts.shape[1]))
    sizes = {name: len(prompts) for name, prompts in grammar.prompts.items()}
    return {"prompts": sizes, "test": test, "chance_levels": chance}, judged_rows(grammar, completions)


# Lengths


def evaluation_lengths(max_length: int, factor: float) -> list[int]:
    """Lengths from a quarter of max_length to ``factor`` times it: quarters up to 1, then 1.5, 2, 3, 4, 6, 8, ... ."""
    steps = [0.25, 0.5, 0.75, *(2**n * half for n in range(8) for half in (1, 1.5))]
    lengths = {int(max_length * step) for step in [*(step for step in steps if step < factor), factor]}
    return sorted(length for length in lengths if length > 0)


def words_of_length(
    own: Grammar, longer: Callable[[int], Grammar], length: int, num: int, generator: torch.Generator
) -> Tensor:
    """(N, length + 2) framed words of exactly that many symbols: N = 0 if there are none.

    Up to ``length = max_length``, those that training has, in the proportions that it has them in. Above, or where it
    has none, those of the grammar with max_length = length + 2 (some languages leave two symbols out). That is every
    word once where the language trains on each of its words once; else words as the sampler draws them among words of
    other lengths, ``num`` of them or as many as MOST_DRAWS draws bring.
    """
    words = torch.empty(0, length + 2, dtype=torch.long)
    if length <= own.max_length:
        words = drawn_words(own, length, num, generator)
    return words if len(words) else drawn_words(longer(length + 2), length, num, generator)


def drawn_words(grammar: Grammar, length: int, num: int, generator: torch.Generator) -> Tensor:
    all_words = grammar.all_words()
    if all_words is not None:
        return of_length(all_words, length)
    words = torch.empty(0, length + 2, dtype=torch.long)
    for draws in range(DRAWS, MOST_DRAWS + 1, DRAWS):
        words = torch.cat([words, of_length(grammar.sample(DRAWS, generator), length)])
        if len(words) >= num or (len(words) == 0 and draws >= 2 * DRAWS):
            break
    return words[:num]


def of_length(rows: Tensor, length: int) -> Tensor:
    """(N, T) framed words -> those of exactly that many symbols, (M, length + 2)."""
    return rows[(rows != PAD).sum(1) == length + 2, : length + 2]


@torch.no_grad()
def losses_and_hits(model: LanguageModel, words: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats, and how often the most probable token is the next one, per symbol and EOS.

    Args:
        words: (N, L + 2) framed words of L symbols.
    """
    losses, hits = [], []
    for rows in words.split(max(1, TOKENS // words.shape[1])):
        logits, targets = model(rows[:, :-1]), rows[:, 1:]
        losses.append(F.cross_entropy(logits, targets, reduction="none").flatten())
        hits.append((logits.argmax(1) == targets).flatten())
    return torch.cat(losses).mean().item(), torch.cat(hits).float().mean().item()


def evaluate_length(
    grammar: Grammar, model: LanguageModel, words: Tensor, decoder: Decoder, samples: int
) -> dict[str, Any]:
    """A row of lengths.csv, for words of one length L.

    The prompts are the words' first L // 2 + 1 symbols: the first half and one more, since behind a^n nothing says how
    many a's are still to come, and behind a^n b all is said.

    Args:
        words: (N, L + 2) framed words.
        decoder: with a budget that suffices, such as 2 L tokens.
    """
    length = words.shape[1] - 2
    loss, accuracy = losses_and_hits(model, words)
    oracle_loss = None
    if length <= grammar.max_length and grammar.process is not None:
        nats = -grammar.log_probability(words).mean().item() / (length + 1)
        oracle_loss = nats if math.isfinite(nats) else None
    prompts = words[:, : length // 2 + 2]
    verdicts = judge_completions(grammar, complete(model, prompts, decoder, samples), prompts.shape[1])
    return {
        "length": length,
        "words": len(words),
        "distinct": len(words.unique(dim=0)),
        "loss": loss,
        "oracle_loss": oracle_loss,
        "accuracy": accuracy,
        "prompt_symbols": length // 2 + 1,
        **{f"{name}_accuracy": holds.float().mean().item() for name, holds in verdicts.items()},
    }
