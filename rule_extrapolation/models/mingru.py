from __future__ import annotations

from rule_extrapolation.models.minimal_rnn import MinimalRNN, MinimalRNNLayer
from rule_extrapolation.ops import gated_recurrence


class MinGRULayer(MinimalRNNLayer):
    """z = σ(W_z x), a = 1 - z: Feng et al. 2024, section 3.1."""

    num_gates = 1
    fused = staticmethod(gated_recurrence.mingru)
    keep_logit = staticmethod(gated_recurrence.mingru_keep_logit)


class MinGRU(MinimalRNN):
    """A stack of minGRU layers."""

    layer_class = MinGRULayer
