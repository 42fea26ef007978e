from __future__ import annotations

from torch import Tensor, nn

from rule_extrapolation.core.errors import check_fraction, check_positive
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.ops.dropout import dropout as drop


class LSTM_LLM(LanguageModel):
    """A unidirectional LSTM (Hochreiter & Schmidhuber 1997) between an embedding and a linear layer.

    The state is (h, c), each of shape (num_layers, B, hidden_dim).

    Args:
        dropout: probability of dropout on the last layer's output.
        dropout_between_layers: probability of dropout on the output of each other layer.

    Raises:
        ConfigError: sizes below 1, dropout outside [0, 1).
    """

    def __init__(
        self,
        num_tokens: int,
        embedding_dim: int = 64,
        hidden_dim: int = 256,
        num_layers: int = 6,
        dropout: float = 0.1,
        dropout_between_layers: float = 0.0,
    ):
        super().__init__()
        check_positive(embedding_dim=embedding_dim, hidden_dim=hidden_dim, num_layers=num_layers)
        check_fraction(dropout=dropout, dropout_between_layers=dropout_between_layers)
        self.embedding = nn.Embedding(num_tokens, embedding_dim)
        # With a single layer, nn.LSTM has no use for dropout and would warn.
        between = dropout_between_layers if num_layers > 1 else 0.0
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, num_layers, dropout=between, batch_first=True)
        self.dropout_p = dropout
        self.head = nn.Linear(hidden_dim, num_tokens)

    def init_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        zeros = self.head.weight.new_zeros(self.lstm.num_layers, batch_size, self.lstm.hidden_size)
        return zeros, zeros

    def advance(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, state = self.lstm(self.embedding(tokens), state)  # (B, T, hidden_dim)
        return self.head(drop(output, self.dropout_p, self.training)), state
