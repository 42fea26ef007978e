from __future__ import annotations

from typing import Literal

from torch import nn

from rule_extrapolation.core.errors import check_choice
from rule_extrapolation.models.recurrent import RecurrentModel


class RNN(RecurrentModel):
    """A simple recurrent network (Elman 1990, "Finding structure in time") between an embedding and a linear layer.

    Each layer computes h' = f(W x + U h + b).

    Args:
        nonlinearity: f, tanh or relu.
        embedding_dim, hidden_dim, num_layers, dropout, dropout_between_layers: as in RecurrentModel.

    Raises:
        ConfigError: as in RecurrentModel, or another nonlinearity.
    """

    layers_class = nn.RNN
    layers_name = "rnn"

    def __init__(
        self,
        num_tokens: int,
        embedding_dim: int = 64,
        hidden_dim: int = 256,
        num_layers: int = 6,
        dropout: float = 0.1,
        dropout_between_layers: float = 0.0,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
    ):
        check_choice(("tanh", "relu"), nonlinearity=nonlinearity)
        sizes = (num_tokens, embedding_dim, hidden_dim, num_layers)
        super().__init__(*sizes, dropout, dropout_between_layers, nonlinearity=nonlinearity)
