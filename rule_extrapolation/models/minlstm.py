from __future__ import annotations

from rule_extrapolation.models.minimal_rnn import MinimalRNN, MinimalRNNLayer
from rule_extrapolation.ops import gated_recurrence


class MinLSTMLayer(MinimalRNNLayer):
    """f = σ(W_f x), i = σ(W_i x), normalised to a = f / (f + i): Feng et al. 2024, section 3.2."""

    num_gates = 2
    fused = staticmethod(gated_recurrence.minlstm)
    keep_logit = staticmethod(gated_recurrence.minlstm_keep_logit)


class MinLSTM(MinimalRNN):
    """A stack of minLSTM layers."""

    layer_class = MinLSTMLayer
