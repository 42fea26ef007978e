from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.models.minimal_rnn import MinimalRNN, MinimalRNNLayer
from rule_extrapolation.ops import gated_recurrence


class MinLSTMLayer(MinimalRNNLayer):
    """f = σ(W_f x), i = σ(W_i x), normalised to a = f / (f + i): Feng et al. 2024, section 3.2."""

    num_gates = 2
    fused = staticmethod(gated_recurrence.minlstm)

    def keep_logit(self, forget: Tensor, input: Tensor) -> Tensor:
        # f / (f + i) = σ(log f - log i), which stays exact where both gates underflow.
        return F.logsigmoid(forget) - F.logsigmoid(input)


class MinLSTM(MinimalRNN):
    """A stack of minLSTM layers."""

    layer_class = MinLSTMLayer
