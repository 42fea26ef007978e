"""The contract that every architecture keeps. Training reads ``forward``, decoding reads ``prefill`` and ``step``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

State = Any
"""What a model remembers of the tokens it has read: tensors, in tuples or dicts if need be. Nobody changes one in
place."""


class LanguageModel(nn.Module, ABC):
    """A causal model of the next token.

    A subclass defines ``init_state`` and ``advance``; the rest follows from them, so that reading a sequence at once
    and token by token cannot disagree. It may override ``step`` where one token alone can be had more cheaply.
    """

    ignore_pad_in_loss: ClassVar[bool] = False
    """Whether the architecture is trained on the loss without PAD targets."""

    caveat: str | None = None
    """What a table must say beside this model's figures, if anything."""

    causal: bool = True
    """Whether an output depends on no token behind it."""

    max_context: int | None = None
    """The longest sequence it reads, in tokens, or None."""

    backend: str | None = None
    """Which implementation computes the model, where it has more than one."""

    backend_reason: str | None = None
    """Why it is not a better one, if there is something to mend."""

    context_setting: ClassVar[str | None] = None
    """The argument that sets ``max_context``, if no weight depends on it: the same weights may be given another."""

    conditional: ClassVar[bool] = False
    """Whether a prompt is read as a whole, by other weights than what stands behind it: ``prefill`` of more than one
    token is then not what ``forward`` comes to behind them, and training takes words in two parts (``continuation``).
    """

    supports_vmap: ClassVar[bool] = False
    """Whether ``torch.vmap`` takes several sets of weights through the model at once, and is quicker than one after the
    other: where small products and Python's own time bound a step."""

    fitted_by_counting: ClassVar[bool] = False
    """Whether ``estimate`` makes the model from the data, in place of gradient steps."""

    baseline: ClassVar[bool] = False
    """Whether tables set it apart, as what can be had without learning rules."""

    def estimate(self, rows: Iterable[Tensor], held_out: Iterable[Tensor], carried: bool = False) -> None:
        """Make the model, where it is ``counted``, from (B, T) token rows of training and of validation.

        Args:
            carried: each row begins with the last token of that row of the batch before, and goes on from there.
        """
        raise NotImplementedError(f"{type(self).__name__} is trained by gradient steps")

    @abstractmethod
    def init_state(self, batch_size: int) -> State:
        """The state before any token."""

    @abstractmethod
    def advance(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read T tokens from a state on.

        Args:
            tokens: (B, T) long, T from 1.

        Returns:
            (B, T, num_tokens) logits of the token behind each one read, and the state behind the last.

        Raises:
            ValueError: the sequence would exceed ``max_context``.
        """

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) long -> (B, num_tokens, T) logits: the layout that nn.CrossEntropyLoss takes."""
        logits, _ = self.advance(tokens, self.init_state(len(tokens)))
        return logits.transpose(1, 2)

    def prefill(self, prompt: Tensor) -> tuple[Tensor, State]:
        """(B, T) long -> (B, num_tokens) logits of the next token, and the state behind the prompt."""
        logits, state = self.advance(prompt, self.init_state(len(prompt)))
        return logits[:, -1], state

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """(B,) long -> (B, num_tokens) logits of the next token, and the state behind this one."""
        logits, state = self.advance(token[:, None], state)
        return logits[:, 0], state

    def continuation(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """(B, P) prompts and (B, T) tokens behind them -> (B, num_tokens, T): the logits of each of those tokens."""
        return self(torch.cat([prompt, tokens[:, :-1]], 1))[:, :, prompt.shape[1] - 1 :]

    def attention_weights(self, prompt: Tensor, tokens: Tensor) -> Tensor | None:
        """(B, P) prompts and (B, T) tokens behind them -> (B, T, P): how much the prediction of each token attends to
        each of the prompt's, or None where the architecture has no such weights."""
        return None

    def check_context(self, length: int) -> None:
        """Raise a ValueError if the model cannot read a sequence of that many tokens."""
        if self.max_context is not None and length > self.max_context:
            raise ValueError(f"{type(self).__name__} reads at most {self.max_context} tokens, not {length}")

    @property
    def num_parameters(self) -> int:
        """Trainable weights."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def runs_on_cuda(accelerator: str) -> bool:
    """Whether what Lightning's Trainer calls ``accelerator`` is a CUDA GPU on this machine."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
