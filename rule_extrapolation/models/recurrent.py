"""The common part of the models of torch's recurrent layers: ``rnn``, ``gru`` and ``lstm``."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from rule_extrapolation.core.errors import check_fraction, check_positive
from rule_extrapolation.models.language_model import LanguageModel, State
from rule_extrapolation.ops.dropout import dropout as drop


class RecurrentModel(LanguageModel):
    """Recurrent layers between an embedding and a linear layer. The state is (num_layers, B, hidden_dim).

    torch.vmap has no rule for these layers, so seeds are not stacked.

    Args:
        dropout: probability of dropout on the last layer's output.
        dropout_between_layers: probability of dropout on the output of each other layer.

    Raises:
        ConfigError: sizes below 1, dropout outside [0, 1).
    """

    layers_class: ClassVar[type[nn.RNNBase]]
    layers_name: ClassVar[str]
    """The attribute that holds the layers, and so the prefix of their weights in a checkpoint."""

    def __init__(
        self,
        num_tokens: int,
        embedding_dim: int = 64,
        hidden_dim: int = 256,
        num_layers: int = 6,
        dropout: float = 0.1,
        dropout_between_layers: float = 0.0,
        **options: Any,
    ):
        super().__init__()
        check_positive(embedding_dim=embedding_dim, hidden_dim=hidden_dim, num_layers=num_layers)
        check_fraction(dropout=dropout, dropout_between_layers=dropout_between_layers)
        self.embedding = nn.Embedding(num_tokens, embedding_dim)
        # With a single layer, torch has no use for dropout and would warn.
        between = dropout_between_layers if num_layers > 1 else 0.0
        layers = self.layers_class(embedding_dim, hidden_dim, num_layers, dropout=between, batch_first=True, **options)
        setattr(self, self.layers_name, layers)
        self.dropout_p = dropout
        self.head = nn.Linear(hidden_dim, num_tokens)

    @property
    def layers(self) -> nn.RNNBase:
        return getattr(self, self.layers_name)

    def init_state(self, batch_size: int) -> State:
        return self.head.weight.new_zeros(self.layers.num_layers, batch_size, self.layers.hidden_size)

    def advance(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        output, state = self.layers(self.embedding(tokens), state)  # (B, T, hidden_dim)
        return self.head(drop(output, self.dropout_p, self.training)), state
