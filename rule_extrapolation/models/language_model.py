"""The interface of all architectures. Training calls ``forward``; decoding calls ``prefill`` and ``step``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

State = Any
"""What a model remembers of the tokens it has read: tensors, possibly in tuples or dicts. A state must never be changed
in place."""


class LanguageModel(nn.Module, ABC):
    """A causal model of the next token.

    A subclass defines ``init_state`` and ``advance``, from which the other methods follow. Reading a whole sequence
    and token by token then agree. A subclass may override ``step`` with a faster computation for a single token.

    Shapes: B rows, T tokens, P tokens of a prompt.
    """

    ignore_pad_in_loss: ClassVar[bool] = False
    """Whether the model trains on ``loss_ignore_pad`` instead of ``loss``."""

    caveat: str | None = None
    """A note that tables show next to the model's figures, or None."""

    causal: bool = True
    """Whether the logits at a position depend only on the tokens up to it."""

    rows_are_independent: bool = True
    """Whether the logits of a row depend neither on the other rows of a batch nor on the row's place in it."""

    max_context: int | None = None
    """The maximum length of a sequence in tokens, or None if it is unlimited."""

    backend: str | None = None
    """Which implementation computes the model, if there are several."""

    backend_reason: str | None = None
    """Why a faster implementation is not available, if the user can change that."""

    context_setting: ClassVar[str | None] = None
    """The argument that sets ``max_context``, if no weight depends on it. It may then differ between training and
    evaluation."""

    conditional: ClassVar[bool] = False
    """Whether prompt and continuation are read by different weights, as in an encoder-decoder. Training then uses
    ``continuation_logits`` on prompts and completions, and ``prefill`` of several tokens differs from ``forward``."""

    supports_vmap: ClassVar[bool] = False
    """Whether several seeds of the model train in one process by ``torch.vmap`` over their stacked weights, which must
    also be faster than training one after another."""

    fitted_by_counting: ClassVar[bool] = False
    """Whether the model is fitted by ``fit_counts`` instead of by gradient steps."""

    baseline: ClassVar[bool] = False
    """Whether tables list the model separately, as a baseline."""

    def fit_counts(self, rows: Iterable[Tensor], held_out: Iterable[Tensor], carried: bool = False) -> None:
        """Fit a model that is ``fitted_by_counting``.

        Args:
            rows: batches of (B, T) training tokens.
            held_out: batches of (B, T) validation tokens.
            carried: each row continues the same row of the previous batch, beginning with its last token.
        """
        raise NotImplementedError(f"{type(self).__name__} is trained by gradient steps")

    @abstractmethod
    def init_state(self, batch_size: int) -> State:
        """The state before the first token."""

    @abstractmethod
    def advance(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Continue reading from a state.

        Args:
            tokens: (B, T) long with T >= 1.
            state: the state after the tokens read so far.

        Returns:
            (B, T, num_tokens) logits, at each position those of the next token, and the state after the last token.

        Raises:
            ValueError: the sequence exceeds ``max_context``.
        """

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) long -> (B, num_tokens, T) logits, in the layout of nn.CrossEntropyLoss."""
        logits, _ = self.advance(tokens, self.init_state(len(tokens)))
        return logits.transpose(1, 2)

    def prefill(self, prompt: Tensor) -> tuple[Tensor, State]:
        """(B, P) long -> (B, num_tokens) logits of the next token, and the state after the prompt."""
        logits, state = self.advance(prompt, self.init_state(len(prompt)))
        return logits[:, -1], state

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """(B,) long -> (B, num_tokens) logits of the next token, and the state after this one."""
        logits, state = self.advance(token[:, None], state)
        return logits[:, 0], state

    def continuation_logits(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """(B, P) prompts and the (B, T) tokens that follow them -> (B, num_tokens, T) logits for these tokens."""
        return self(torch.cat([prompt, tokens[:, :-1]], 1))[:, :, prompt.shape[1] - 1 :]

    def attention_weights(self, prompt: Tensor, tokens: Tensor) -> Tensor | None:
        """(B, P) prompts and the (B, T) tokens that follow them -> (B, T, P): the attention weights of each prediction
        over the prompt, or None if the model does not attend to its prompt."""
        return None

    def check_context(self, length: int) -> None:
        """Raise a ValueError if a sequence of ``length`` tokens exceeds ``max_context``."""
        if self.max_context is not None and length > self.max_context:
            raise ValueError(f"{type(self).__name__} reads at most {self.max_context} tokens, not {length}")

    @property
    def num_parameters(self) -> int:
        """The number of trainable weights."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def runs_on_cuda(accelerator: str) -> bool:
    """Whether Lightning's Trainer would use a CUDA GPU on this machine, given its argument ``accelerator``."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
