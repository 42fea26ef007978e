from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """One process's share of rows that all ``size`` processes have: every size-th row, starting at row ``rank``."""

    rank: int = 0
    size: int = 1

    @property
    def rows(self) -> slice:
        return slice(self.rank, None, self.size)

    def of(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch. If none are left for it, it gets the first row, whose weight is then 0."""
        if self.size == 1:
            return batch
        return batch[self.rows] if self.rank < len(batch) else batch[:1]

    def gather(self, own: Tensor) -> Tensor:
        """Collect a tensor (...) from each process into one (size, ...) that every process gets."""
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(gathered, own.contiguous())
        return torch.stack(gathered)

    def weight(self, batch: Tensor, own_count: Tensor | int, count: Tensor | int) -> Tensor | float:
        """What to multiply a mean over ``own_count`` of the batch's ``count`` elements by, so that the mean over all
        processes is the mean over the batch."""
        return self.size * own_count / count if self.rank < len(batch) else 0.0
