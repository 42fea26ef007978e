from __future__ import annotations

import torch
from torch import Tensor, nn

from rule_extrapolation.core.errors import ConfigError, check_positive
from rule_extrapolation.models.language_model import LanguageModel


class FFNN(LanguageModel):
    """The neural n-gram model of Bengio et al. (2003, equation 1): y = b + W x + U tanh(d + H x), where x is the
    concatenation of the embeddings of the last ``order - 1`` tokens.

    The state is (B, order - 1): the last tokens. A special token with an embedding of its own pads a row on the left.

    Args:
        order: n. The model reads n - 1 tokens.
        direct: whether the embeddings are also connected directly to the output (W).

    Raises:
        ConfigError: an order below 2, sizes below 1.
    """

    def __init__(
        self, num_tokens: int, order: int = 5, embedding_dim: int = 64, hidden_dim: int = 256, direct: bool = True
    ):
        super().__init__()
        check_positive(embedding_dim=embedding_dim, hidden_dim=hidden_dim)
        if order < 2:
            raise ConfigError("order", order, "must be 2 or more, since the model reads order - 1 tokens")
        self.order, self.start_token = order, num_tokens
        self.embedding = nn.Embedding(num_tokens + 1, embedding_dim)
        self.hidden = nn.Linear((order - 1) * embedding_dim, hidden_dim)
        self.head = nn.Linear(hidden_dim, num_tokens)
        self.direct = nn.Linear((order - 1) * embedding_dim, num_tokens, bias=False) if direct else None

    def init_state(self, batch_size: int) -> Tensor:
        return torch.full((batch_size, self.order - 1), self.start_token, device=self.head.weight.device)

    def advance(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        history = torch.cat([state, tokens], 1)  # (B, order - 1 + T)
        contexts = history[:, 1:].unfold(1, self.order - 1, 1)  # (B, T, order - 1)
        x = self.embedding(contexts).flatten(2)  # (B, T, (order - 1) * embedding_dim)
        logits = self.head(self.hidden(x).tanh())
        if self.direct is not None:
            logits = logits + self.direct(x)
        return logits, history[:, tokens.shape[1] :]
