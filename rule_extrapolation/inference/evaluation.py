"""Evaluation of a trained model on other prompts, with another decoder, and on words of other lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.core.tokens import EOS, PAD
from rule_extrapolation.grammars.chance import chance_levels
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.grammars.judging import accuracies, judge_completions, judged_rows, stop_at_once
from rule_extrapolation.inference.decoding import Decoder, defined_logits
from rule_extrapolation.models.language_model import LanguageModel

ROWS = 4096
"""The maximum number of prompts that are completed at once, which bounds the memory of their states."""
TOKENS = 2**15
"""The maximum number of tokens that are read at once."""
DRAWS, MAX_DRAWS = 4096, 8 * 4096
"""How many words are drawn at once, and at most, in search of words of one length."""


def complete(model: LanguageModel, prompts: Tensor, decoder: Decoder, samples: int = 1) -> Tensor:
    """(N, P) prompts -> (N * samples, P + new) tokens: ``samples`` consecutive rows for each prompt."""
    generator = decoder.make_generator()
    parts = [decoder(model, part, generator) for part in prompts.repeat_interleave(samples, 0).split(ROWS)]
    # A narrower part has finished in all its rows, so that PAD would follow.
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1]), value=PAD) for part in parts])


@torch.no_grad()
def probabilities(model: LanguageModel, completions: Tensor, prompt_length: int) -> Tensor:
    """The probabilities of completions under a model.

    Args:
        completions: (N, P + new) tokens: the prompt and the completion.
        prompt_length: P in tokens.

    Returns:
        (N,) float64: the product of the probabilities of the completion's tokens, EOS included. For an unfinished
        completion it is the probability that a completion begins with it.
    """
    added = completions[:, prompt_length:]
    logits = defined_logits(model, model.continuation_logits(completions[:, :prompt_length], added).double())
    is_eos = (added == EOS).long()
    after_eos = is_eos.cumsum(1) > is_eos
    return (-F.cross_entropy(logits, added, reduction="none").masked_fill(after_eos, 0).sum(1)).exp()


def evaluate_prompts(
    grammar: Grammar, model: LanguageModel, decoder: Decoder, samples: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Complete a grammar's prompt sets.

    Returns:
        The entries ``prompts``, ``test``, ``chance_levels`` and ``stop_at_once`` as in results.json, and the rows of
        completions.csv.
    """
    completions = {name: complete(model, prompts, decoder, samples) for name, prompts in grammar.prompts.items()}
    test: dict[str, float] = {}
    for name, tokens in completions.items():
        test |= accuracies(grammar, tokens, grammar.prompts[name].shape[1], f"Test/{name}")
    chance = chance_levels(grammar, lambda prompts: decoder.budget(model, prompts.shape[1]))
    levels = {"chance_levels": chance, "stop_at_once": stop_at_once(grammar)}
    return {"prompts": grammar.num_prompts(), "test": test, **levels}, judged_rows(grammar, completions)


# Lengths


def evaluation_lengths(max_length: int, factor: float) -> list[int]:
    """Lengths of words to evaluate: 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, ... times max_length, up to ``factor`` times.

    >>> evaluation_lengths(max_length=32, factor=4)
    [8, 16, 24, 32, 48, 64, 96, 128]
    """
    steps = [0.25, 0.5, 0.75, *(2**n * half for n in range(8) for half in (1, 1.5))]
    lengths = {int(max_length * step) for step in [*(step for step in steps if step < factor), factor]}
    return sorted(length for length in lengths if length > 0)


def words_of_length(
    own: Grammar, longer: Callable[[int], Grammar], length: int, num: int, generator: torch.Generator
) -> Tensor:
    """Words of exactly ``length`` symbols.

    They follow the training distribution, given the length. If training has no such words, they follow that of the
    grammar with max_length = length + 2 (the words of aNbM have max_length - 2 symbols).

    Args:
        own: the run's grammar.
        longer: makes the run's grammar with another max_length.
        num: how many words to draw. It is ignored if the language trains on each of its words once.

    Returns:
        (N, length + 2) framed words. N is 0 if there are none, and may be less than ``num`` if such words are rare.
    """
    words = torch.empty(0, length + 2, dtype=torch.long)
    if length <= own.max_length:
        words = draw_words(own, length, num, generator)
    return words if len(words) else draw_words(longer(length + 2), length, num, generator)


def draw_words(grammar: Grammar, length: int, num: int, generator: torch.Generator) -> Tensor:
    """``words_of_length`` of one grammar."""
    all_words = grammar.all_words()
    if all_words is not None:
        return select_length(all_words, length)
    words = torch.empty(0, length + 2, dtype=torch.long)
    for draws in range(DRAWS, MAX_DRAWS + 1, DRAWS):
        words = torch.cat([words, select_length(grammar.sample(DRAWS, generator), length)])
        if len(words) >= num or (len(words) == 0 and draws >= 2 * DRAWS):
            break
    return words[:num]


def select_length(rows: Tensor, length: int) -> Tensor:
    """(N, T) framed words -> (M, length + 2): the words of exactly ``length`` symbols."""
    return rows[(rows != PAD).sum(1) == length + 2, : length + 2]


@torch.no_grad()
def loss_and_accuracy(model: LanguageModel, words: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the share of targets that are the most probable token, over symbols and EOS.

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
    """A row of lengths.csv: figures on words of one length L.

    The prompts are the words' first symbols, as many as ``grammar.num_given_symbols`` says.

    Args:
        words: (N, L + 2) framed words.
        decoder: its max_new_tokens should be enough to complete the words, such as 2 L.
        samples: completions of each prompt.
    """
    length = words.shape[1] - 2
    loss, accuracy = loss_and_accuracy(model, words)
    oracle_loss = None
    if length <= grammar.max_length and grammar.process is not None:
        nats = -grammar.log_probability(words).mean().item() / (length + 1)
        oracle_loss = nats if math.isfinite(nats) else None
    given = grammar.num_given_symbols(length)
    prompts = words[:, : 1 + given]
    verdicts = judge_completions(grammar, complete(model, prompts, decoder, samples), prompts.shape[1])
    return {
        "length": length,
        "words": len(words),
        "distinct": len(words.unique(dim=0)),
        "loss": loss,
        "oracle_loss": oracle_loss,
        "accuracy": accuracy,
        "prompt_symbols": given,
        **{f"{name}_accuracy": holds.float().mean().item() for name, holds in verdicts.items()},
    }


def mean_of_longer(rows: list[dict[str, Any]], max_length: int) -> dict[str, float]:
    """The accuracies of ``evaluate_length``, averaged over the lengths above ``max_length``.

    All lengths count the same, as in the score of Delétang et al. (arXiv 2207.02098). Empty if there are none.
    """
    longer = [row for row in rows if row["length"] > max_length]
    names = [name for name in rows[0] if name.endswith("accuracy")] if longer else []
    return {name: sum(row[name] for row in longer) / len(longer) for name in names}
