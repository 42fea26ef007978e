from __future__ import annotations

from rule_extrapolation.models.minimal_rnn import MinimalRNN, MinimalRNNLayer
from rule_extrapolation.ops import gated_recurrence


class MinGRULayer(MinimalRNNLayer):
    """Update gate z_t = σ(W_z x_t), share a_t = 1 - z_t (Feng et al. 2024, section 3.1)."""

    num_gates = 1
    fused = staticmethod(gated_recurrence.mingru)
    keep_logit = staticmethod(gated_recurrence.mingru_keep_logit)


class MinGRU(MinimalRNN):
    """minGRU layers between an embedding and a linear layer: h_t = (1 - z_t) h_{t-1} + z_t h̃_t (Feng et al. 2024)."""

    layer_class = MinGRULayer
