"""Prompts of a model that was trained on text: the next token's probabilities, and continuations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.experiment.prompts import encode_prompt
from rule_extrapolation.inference import evaluation
from rule_extrapolation.inference.decoding import decoding_limits, defined_logits, greedy_and_sampled
from rule_extrapolation.reporting.console import plain_console
from rule_extrapolation.reporting.text import print_continuations

if TYPE_CHECKING:
    from rule_extrapolation.experiment.trained_run import TrainedRun

SAMPLES = 1
"""Completions that are drawn by default."""
SHOWN = 6
"""The most probable next tokens that are shown."""


class TextPrompts:
    """How ``complete`` treats prompts of a run on a text."""

    @staticmethod
    def heading(run: TrainedRun) -> str:
        return run.task.level

    @staticmethod
    def check_attends(run: TrainedRun, file: str) -> None:
        """Raise a ConfigError: seq2seq, the only model with attention to its prompt, does not train on text."""
        fix = f"{run.task.name} is a text, and its models have no attention to draw; leave it out"
        raise ConfigError("attention", file, fix)

    @staticmethod
    def complete(
        run: TrainedRun, prompt: str, new_tokens: int | None, samples: int | None, temperature: float, seed: int
    ) -> None:
        """Print the most probable next tokens, the greedy completion and the drawn ones."""
        vocabulary, tokens = run.task.vocabulary, encode_prompt(run.task, run.model, prompt)
        limits = decoding_limits(run.decoder, new_tokens)
        decoders = greedy_and_sampled(limits, SAMPLES if samples is None else samples, temperature, seed)
        [logits] = defined_logits(run.model, run.model.prefill(tokens)[0])
        probabilities, next_ = logits.softmax(0).topk(min(SHOWN, run.task.num_tokens))
        likely = {vocabulary.name(token): p for token, p in zip(next_.tolist(), probabilities.tolist())}
        rows = []
        for name, (decoder, number) in decoders.items():
            for completion in evaluation.complete(run.model, tokens, decoder, number)[:, tokens.shape[1] :].tolist():
                rows.append((name, vocabulary.decode_completion(completion)[0]))
        unknown = [token for token in vocabulary.level.split(prompt) if token not in vocabulary.ids]
        print_continuations(plain_console(), prompt, unknown, likely, rows)
