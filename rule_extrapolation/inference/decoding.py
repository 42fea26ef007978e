"""Decoders, which complete prompts through a model's ``prefill`` and ``step``."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError, UndefinedPrediction, check_positive, check_seed
from rule_extrapolation.core.random import generator
from rule_extrapolation.core.threads import multiply_adds, threads_limited, useful_threads
from rule_extrapolation.core.tokens import EOS, PAD
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.ops.allocator import keep_freed_memory

SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny
"""Below this, decoding is greedy."""


def defined_logits(model: LanguageModel, logits: Tensor) -> Tensor:
    """The logits, in which a single infinite one of a position becomes the only possible token.

    Args:
        model: whose logits they are, for the error message.
        logits: (B, num_tokens, ...).

    Raises:
        UndefinedPrediction: a position's logits contain nan, several infinities, or only minus infinity.
    """
    if logits.sum().isfinite():
        return logits
    largest, is_infinite = logits.amax(1, keepdim=True), logits == math.inf
    if (largest.isnan() | (largest == -math.inf) | (is_infinite.sum(1, keepdim=True) > 1)).any():
        raise UndefinedPrediction(model)
    only = torch.zeros_like(logits).masked_fill(~is_infinite, -math.inf)
    return torch.where(largest == math.inf, only, logits)


class Decoder(ABC):
    """Completes prompts until every row has finished or has reached the maximum length.

    Args:
        max_new_tokens: the maximum number of tokens in a completion. A model with a limited context may write fewer.
        max_tokens: the maximum number of tokens in a prompt, SOS included, and its completion together. Every
            completion has at least one token. None: no such limit.

    Raises:
        ConfigError: ``max_new_tokens`` or ``max_tokens`` below 1.
    """

    def __init__(self, max_new_tokens: int, max_tokens: int | None = None):
        check_positive(max_new_tokens=max_new_tokens)
        if max_tokens is not None:
            check_positive(max_tokens=max_tokens)
        self.max_new_tokens, self.max_tokens = max_new_tokens, max_tokens

    @abstractmethod
    def pick(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """(B, num_tokens) logits, of which none is nan or plus infinity -> (B,) long: the next token of each row."""

    def make_generator(self) -> torch.Generator | None:
        """The source of the decoder's random draws, or None if it draws nothing."""
        return None

    def budget(self, model: LanguageModel, prompt_length: int) -> int:
        """The maximum number of new tokens after a prompt of ``prompt_length`` tokens.

        A model writes one token more than its context has room for, since it need not read the last one.
        """
        budget = self.max_new_tokens
        if self.max_tokens is not None:
            budget = min(budget, max(self.max_tokens - prompt_length, 1))
        if model.max_context is not None:
            budget = min(budget, model.max_context - prompt_length + 1)
        return budget

    @torch.no_grad()
    def __call__(
        self,
        model: LanguageModel,
        prompts: Tensor,
        generator: torch.Generator | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        """Complete prompts.

        Args:
            prompts: (B, P) tokens, SOS included.
            generator: continues the random draws of an earlier call. None: draws start again from the decoder's seed.
            rows: complete only these prompts, with the same draws as if all were completed.

        Returns:
            (B, P + new) tokens: the prompt, the completion up to EOS, then PAD.

        Raises:
            UndefinedPrediction: the model's logits define no next token.
        """
        total = len(prompts)
        prompts = prompts if rows is None else prompts[rows]
        if len(prompts) == 0:
            return prompts
        keep_freed_memory()
        generator = generator or self.make_generator()
        # Threads for one token per row: some models, such as xlstm, also read prompts token by token.
        with threads_limited(useful_threads(multiply_adds(model, len(prompts)))):
            pick = partial(self.pick_rows, total, rows, generator)
            return torch.cat([prompts, self.complete(model, prompts, pick)], 1)

    def pick_rows(self, total: int, rows: slice | None, generator: torch.Generator | None, logits: Tensor) -> Tensor:
        """``pick`` for some of ``total`` rows. It draws for all of them, so that draws do not depend on ``rows``."""
        if rows is None:
            return self.pick(logits, generator)
        all_logits = logits.new_zeros(total, logits.shape[1])
        all_logits[rows] = logits
        return self.pick(all_logits, generator)[rows]

    def complete(self, model: LanguageModel, prompts: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, P) prompts -> (B, new) completions."""
        logits, state = model.prefill(prompts)
        tokens = []
        finished = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
        for remaining in reversed(range(self.budget(model, prompts.shape[1]))):
            token = pick(defined_logits(model, logits)).masked_fill(finished, PAD)
            tokens.append(token)
            finished |= token == EOS
            if finished.all() or not remaining:
                break
            logits, state = model.step(token, state)
        return torch.stack(tokens, 1)


def decoding_limits(own: Decoder, max_new_tokens: int | None) -> dict[str, int | None]:
    """A run's ``max_new_tokens`` and ``max_tokens``, or only ``max_new_tokens`` where it is given."""
    if max_new_tokens is not None:
        return {"max_new_tokens": max_new_tokens, "max_tokens": None}
    return {"max_new_tokens": own.max_new_tokens, "max_tokens": own.max_tokens}


class Greedy(Decoder):
    """Picks the most probable token."""

    def pick(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        return logits.argmax(1)


class Sample(Decoder):
    """Draws tokens from the model's distribution, with the same draws on every call.

    Args:
        temperature: by which logits are divided. Below the smallest normal float32, the most probable token is picked.
        seed: of the draws.
        max_new_tokens, max_tokens: as for all decoders.

    Raises:
        ConfigError: a temperature that is not positive.
    """

    def __init__(self, max_new_tokens: int, temperature: float = 1.0, seed: int = 0, max_tokens: int | None = None):
        super().__init__(max_new_tokens, max_tokens)
        if temperature == 0:
            raise ConfigError("temperature", temperature, "must be greater than 0; set decoding=greedy instead")
        check_positive(temperature=temperature)
        check_seed(seed=seed)
        self.temperature, self.seed = temperature, seed

    def make_generator(self) -> torch.Generator:
        return generator(self.seed)

    def pick(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.temperature < SMALLEST_TEMPERATURE:
            return logits.argmax(1)
        # The largest becomes 0, so that it does not become infinite when it is divided by a small temperature.
        logits = logits.double()
        scaled = (logits - logits.amax(1, keepdim=True)) / self.temperature
        probabilities = scaled.float().softmax(1).cpu()  # so that the draws do not depend on the device
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(1).to(logits.device)


DECODERS = {"greedy": Greedy, "sample": Sample}


def make_decoder(own: Decoder, name: str | None, **given: float | None) -> Decoder:
    """A decoder with a run's settings, some of them replaced.

    Args:
        own: the run's decoder.
        name: greedy or sample. None: as the run's.
        given: settings that replace the run's. None keeps the run's value.

    Raises:
        ConfigError: a value that the decoder rejects, or a temperature for greedy decoding.
    """
    decoder_class = type(own) if name is None else DECODERS[name]
    parameters = inspect.signature(decoder_class).parameters
    if given["temperature"] is not None and "temperature" not in parameters:
        raise ConfigError("temperature", given["temperature"], "greedy decoding has none; set decoding=sample")
    settings = {key: getattr(own, key) for key in parameters if hasattr(own, key)}
    settings |= {key: value for key, value in given.items() if value is not None and key in parameters}
    return decoder_class(**settings)


def greedy_and_sampled(
    limits: dict[str, int | None], samples: int, temperature: float, seed: int
) -> dict[str, tuple[Decoder, int]]:
    """By name, the decoders that a prompt is completed with, and how many completions each makes.

    Args:
        limits: ``max_new_tokens`` and ``max_tokens``, as for all decoders.
    """
    decoders: dict[str, tuple[Decoder, int]] = {"greedy": (Greedy(**limits), 1)}
    if samples:
        decoders["sample"] = (Sample(temperature=temperature, seed=seed, **limits), samples)
    return decoders
