"""Optimizer steps over several batches (``trainer.accumulate_grad_batches``)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class AccumulatedStep:
    """The means over all batches of one optimizer step.

    Lightning adds up the gradients of loss / K over K batches, as if each batch counted the same number of tokens. Here
    a batch's loss is multiplied by ``weight``, its count relative to the first batch's, and the sum of the gradients by
    ``gradient_factor``, which together make the gradient of the mean over all tokens.
    """

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.first: Tensor | int | None = None
        self.total: Tensor | int = 0
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor | int] = {}

    def weight(self, count: Tensor | int) -> Tensor | float:
        """What to multiply the next batch's objective by, which is a mean over ``count`` tokens or rows."""
        if self.first is None:
            self.first = count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1)
        self.total = self.total + count
        return count / self.first

    @property
    def relative_size(self) -> Tensor | float:
        """The count of all batches so far relative to the first one's."""
        return self.total / self.first

    @property
    def gradient_factor(self) -> Tensor | float:
        """What to multiply the gradients by before the step."""
        return self.num_batches * self.first / self.total

    def add(self, name: str, mean: Tensor, count: Tensor | int) -> None:
        """Take in a mean over ``count`` tokens or rows of a batch, to be logged."""
        self.sums[name] = self.sums.get(name, 0) + mean.detach() * count
        self.counts[name] = self.counts.get(name, 0) + count

    def means(self) -> dict[str, Tensor]:
        """The means over all batches so far."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


@torch.no_grad()
def scale_gradients(parameters: Iterable[Tensor], factor: Tensor | float) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
