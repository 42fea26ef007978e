from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """What one of ``size`` processes takes of rows that all of them have: every size-th, from ``rank`` on."""

    rank: int = 0
    size: int = 1

    @property
    def rows(self) -> slice:
        return slice(self.rank, None, self.size)

    def of(self, batch: Tensor) -> Tensor:
        """Its rows of a batch; where there are none left for it, the first one, which then weighs 0."""
        if self.size == 1:
            return batch
        return batch[self.rows] if self.rank < len(batch) else batch[:1]

    def gather(self, own: Tensor) -> Tensor:
        """The tensors of all processes, (...) each, as (size, ...) in each."""
        everyones = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(everyones, own.contiguous())
        return torch.stack(everyones)

    def weight(self, batch: Tensor, own_count: Tensor | int, count: Tensor | int) -> Tensor | float:
        """What a mean over ``own_count`` of the batch's ``count`` is multiplied by, so that the mean of what all
        processes then have is the mean over the batch."""
        return self.size * own_count / count if self.rank < len(batch) else 0.0
