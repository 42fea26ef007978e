from __future__ import annotations

import torch
from torch import Tensor, nn

from rule_extrapolation.core.errors import ConfigError, check_positive
from rule_extrapolation.models.language_model import LanguageModel


class FFNN(LanguageModel):
    """The neural n-gram of Bengio et al. (2003): y = b + W x + U tanh(d + H x), with x the embeddings of the last
    ``order - 1`` tokens side by side (eq. 1 there).

    The state is those tokens, (B, order - 1); before a row's first one stands a token of its own.

    Args:
        order: n: it reads n - 1 tokens.
        direct: connect the embeddings to the output too (W).

    Raises:
        ConfigError: an order below 2, sizes below 1.
    """

    def __init__(
        self, num_tokens: int, order: int = 5, embedding_dim: int = 64, hidden_dim: int = 256, direct: bool = True
    ):
        super().__init__()
        check_positive(embedding_dim=embedding_dim, hidden_dim=hidden_dim)
        if order < 2:
            raise ConfigError("order", order, "must be 2 or more: it reads order - 1 tokens")
        self.order, self.none = order, num_tokens
        self.embedding = nn.Embedding(num_tokens + 1, embedding_dim)
        self.hidden = nn.Linear((order - 1) * embedding_dim, hidden_dim)
        self.head = nn.Linear(hidden_dim, num_tokens)
        self.direct = nn.Linear((order - 1) * embedding_dim, num_tokens, bias=False) if direct else None

    def init_state(self, batch_size: int) -> Tensor:
        return torch.full((batch_size, self.order - 1), self.none, device=self.head.weight.device)

    def advance(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        history = torch.cat([state, tokens], 1)
        x = self.embedding(history[:, 1:].unfold(1, self.order - 1, 1)).flatten(2)
        logits = self.head(self.hidden(x).tanh())
        if self.direct is not None:
            logits = logits + self.direct(x)
        return logits, history[:, tokens.shape[1] :]
