from __future__ import annotations

from rule_extrapolation.models.minimal_rnn import MinimalRNN, MinimalRNNLayer
from rule_extrapolation.ops import gated_recurrence


class MinLSTMLayer(MinimalRNNLayer):
    """Gates f_t = σ(W_f x_t) and i_t = σ(W_i x_t), share a_t = f_t / (f_t + i_t) (Feng et al. 2024, section 3.2)."""

    num_gates = 2
    fused = staticmethod(gated_recurrence.minlstm)
    keep_logit = staticmethod(gated_recurrence.minlstm_keep_logit)


class MinLSTM(MinimalRNN):
    """minLSTM layers between an embedding and a linear layer: h_t = f'_t h_{t-1} + i'_t h̃_t (Feng et al. 2024)."""

    layer_class = MinLSTMLayer
