"""From prompts to completions, through a model's ``prefill`` and ``step``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError, check_positive, check_seed
from rule_extrapolation.core.random import generator
from rule_extrapolation.core.threads import limited, multiply_adds, threads_for
from rule_extrapolation.grammars.grammar import EOS, PAD
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.ops.allocator import keep_freed_memory


class Decoder(ABC):
    """Completes prompts until every row has finished or the budget is used.

    Args:
        max_new_tokens: the budget for one completion; it is cut to what the model's context leaves.

    Raises:
        ConfigError: a budget below 1.
    """

    def __init__(self, max_new_tokens: int):
        check_positive(max_new_tokens=max_new_tokens)
        self.max_new_tokens = max_new_tokens

    @abstractmethod
    def pick(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """(B, num_tokens) -> (B,): the next token of each row."""

    def make_generator(self) -> torch.Generator | None:
        return None

    def budget(self, model: LanguageModel, prompt_length: int) -> int:
        """New tokens that a prompt of that many tokens gets: the last one is never read."""
        if model.max_context is None:
            return self.max_new_tokens
        return min(self.max_new_tokens, model.max_context - prompt_length + 1)

    @torch.no_grad()
    def __call__(
        self,
        model: LanguageModel,
        prompts: Tensor,
        generator: torch.Generator | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        """(B, P) prompts -> (B, P + new): the prompts, what the model adds up to EOS, then PAD.

        Args:
            generator: to go on with the draws of an earlier call, instead of beginning anew.
            rows: which prompts to complete, as they would be among the others; all of them by default.
        """
        total = len(prompts)
        prompts = prompts if rows is None else prompts[rows]
        if len(prompts) == 0:
            return prompts
        keep_freed_memory()
        generator = generator or self.make_generator()
        # Of a prompt's tokens too there may be one at a time: xlstm's step is its only way to a state.
        with limited(threads_for(multiply_adds(model, len(prompts)))):
            pick = partial(self.pick_rows, total, rows, generator)
            return torch.cat([prompts, self.complete(model, prompts, pick)], 1)

    def pick_rows(self, total: int, rows: slice | None, generator: torch.Generator | None, logits: Tensor) -> Tensor:
        """``pick`` for some rows of ``total``, whose draws are the same whoever completes the others."""
        if rows is None:
            return self.pick(logits, generator)
        everyone = logits.new_zeros(total, logits.shape[1])
        everyone[rows] = logits
        return self.pick(everyone, generator)[rows]

    def complete(self, model: LanguageModel, prompts: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, new): what the model adds."""
        logits, state = model.prefill(prompts)
        tokens = []
        finished = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
        for remaining in reversed(range(self.budget(model, prompts.shape[1]))):
            token = pick(logits).masked_fill(finished, PAD)
            tokens.append(token)
            finished |= token == EOS
            if finished.all() or not remaining:
                break
            logits, state = model.step(token, state)
        return torch.stack(tokens, 1)


class Greedy(Decoder):
    """The most probable token each time."""

    def pick(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        return logits.argmax(1)


class Sample(Decoder):
    """A token drawn from the model's distribution at a temperature; the same draws on every call.

    Raises:
        ConfigError: a temperature that is not above 0.
    """

    def __init__(self, max_new_tokens: int, temperature: float = 1.0, seed: int = 0):
        super().__init__(max_new_tokens)
        if temperature == 0:
            raise ConfigError("temperature", temperature, "must be greater than 0; decoding=greedy is its limit at 0")
        check_positive(temperature=temperature)
        check_seed(seed=seed)
        self.temperature, self.seed = temperature, seed

    def make_generator(self) -> torch.Generator:
        return generator(self.seed)

    def pick(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        # On the CPU, so that the draws do not depend on the device.
        # Where training has diverged there is no distribution: any token will do, and the run can say what happened.
        probabilities = (logits.float() / self.temperature).softmax(1).nan_to_num(1.0).cpu()
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(1).to(logits.device)
