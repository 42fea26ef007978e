from __future__ import annotations

from torch import Tensor

from rule_extrapolation.models.minimal_rnn import MinimalRNN, MinimalRNNLayer
from rule_extrapolation.ops import gated_recurrence


class MinGRULayer(MinimalRNNLayer):
    """z = σ(W_z x), a = 1 - z: Feng et al. 2024, section 3.1."""

    num_gates = 1
    fused = staticmethod(gated_recurrence.mingru)

    def keep_logit(self, update: Tensor) -> Tensor:
        return -update


class MinGRU(MinimalRNN):
    """A stack of minGRU layers."""

    layer_class = MinGRULayer
