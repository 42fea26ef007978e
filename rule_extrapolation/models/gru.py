from __future__ import annotations

from torch import nn

from rule_extrapolation.models.recurrent import RecurrentModel


class GRU(RecurrentModel):
    """Gated recurrent units (Cho et al. 2014, arXiv 1406.1078) between an embedding and a linear layer.

    Each layer computes

        r = σ(W_r x + U_r h),  z = σ(W_z x + U_z h)     (equations 5 and 6)
        n = tanh(W_n x + r * (U_n h + b))
        h' = (1 - z) * n + z * h                        (equation 7)

    with biases throughout. This is torch's GRU, whose reset gate r multiplies U_n h; in the paper (equation 8) it
    multiplies h. Arguments and errors are those of RecurrentModel.
    """

    layers_class = nn.GRU
    layers_name = "gru"
