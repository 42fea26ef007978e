from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_extrapolation.core.errors import check_positive
from rule_extrapolation.models.language_model import LanguageModel


class LinearLLM(LanguageModel):
    """The logits at position t are a linear function of the embedded tokens at positions s <= t, with separate weights
    for every pair (s, t).

    The state is the sum of the contributions of the tokens so far, (B, max_context, num_tokens), and their number.

    Args:
        max_data_length: the maximum number of symbols in a word. The model reads one token more, SOS.
        bias: whether each position has a bias.
        published_mask: let the token at position s reach targets t <= s, as in the published code. The model then sees
            the tokens that it predicts, so it is not causal. Only for reproducing published figures.
        published_decoding: when completing a prompt, read the logits of each next token at the last position,
            max_data_length, as the published code does, and not at the last token's. With ``published_mask``, no token
            but one at that position reaches it, so that completions depend on the bias alone and are the same for all
            prompts. Only for reproducing published figures.

    Raises:
        ConfigError: sizes below 1.
    """

    ignore_pad_in_loss = True
    supports_vmap = True

    def __init__(
        self,
        num_tokens: int,
        max_data_length: int = 32,
        embedding_dim: int = 128,
        bias: bool = True,
        published_mask: bool = False,
        published_decoding: bool = False,
    ):
        super().__init__()
        check_positive(max_data_length=max_data_length, embedding_dim=embedding_dim)
        self.causal, self.published_decoding = not published_mask, published_decoding
        caveats = {"published mask: sees the future": published_mask, "published decoding": published_decoding}
        self.caveat = "; ".join(caveat for caveat, holds in caveats.items() if holds) or None
        length = self.max_context = max_data_length + 1
        self.embedding = nn.Embedding(num_tokens, embedding_dim)
        # Source position, embedding, target position, token.
        self.weight = nn.Parameter(torch.empty(length, embedding_dim, length, num_tokens))
        self.bias = nn.Parameter(torch.zeros(length, num_tokens)) if bias else None
        if bias:
            self.bias._no_weight_decay = True
        nn.init.xavier_uniform_(self.weight)
        source_reaches_target = torch.ones(length, length).triu()
        mask = source_reaches_target.mT if published_mask else source_reaches_target
        self.register_buffer("mask", mask[:, None, :, None], persistent=False)

    def init_state(self, batch_size: int) -> tuple[Tensor, int]:
        length, _, _, num_tokens = self.weight.shape
        logits = self.weight.new_zeros(batch_size, length, num_tokens)
        return (logits if self.bias is None else logits + self.bias), 0

    def advance(self, tokens: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        logits, start = state
        end = start + tokens.shape[1]
        self.check_context(end)
        # The vocabulary is smaller than a batch. So the contribution of every token at every position is computed once
        # for all rows, and a product with the one-hot tokens adds up the contributions of each row.
        # Shapes: V is the vocabulary, L is max_context.
        added = (self.embedding.weight @ self.weight[start:end].flatten(2)).unflatten(2, self.weight.shape[2:])
        added = (added * self.mask[start:end]).flatten(2).flatten(0, 1)  # (T, V, L, V) -> (T * V, L * V)
        vocabulary = self.embedding.num_embeddings
        one_hot = F.embedding(tokens, torch.eye(vocabulary, dtype=added.dtype, device=added.device))  # (B, T, V)
        logits = logits + (one_hot.flatten(1) @ added).view_as(logits)
        return logits[:, start:end], (logits, end)

    def prefill(self, prompt: Tensor) -> tuple[Tensor, tuple[Tensor, int]]:
        logits, state = super().prefill(prompt)
        return self.decoded(logits, state), state

    def step(self, token: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        logits, state = super().step(token, state)
        return self.decoded(logits, state), state

    def decoded(self, logits: Tensor, state: tuple[Tensor, int]) -> Tensor:
        """(B, num_tokens) logits of the last token and the state after it -> the logits that decoding reads."""
        return state[0][:, -1] if self.published_decoding else logits
