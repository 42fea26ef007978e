from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_extrapolation.core.errors import ConfigError, check_fraction, check_positive
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.ops.attention import causal_attention
from rule_extrapolation.ops.dropout import dropout, relu_dropout
from rule_extrapolation.ops.kv_cache import Cache, extend


class TransformerDecoder(LanguageModel):
    """Decoder-only transformer (Vaswani et al. 2017) with sinusoidal positions.

    Its layers are nn.TransformerEncoderLayer modules, and its values are theirs under a causal mask. Their computation
    is written out here because they cannot continue from a key/value cache. The state is one Cache per layer.

    Args:
        dim_model: width of the residual stream.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout_p: probability of dropout on embeddings, attention weights and both branches of each layer.
        relu_rescale: a fixed factor on the ReLU of the feed-forward networks.
        norm_first: normalise before each branch (pre-norm) instead of after it (post-norm).
        max_len: the maximum length of a sequence in tokens.

    Raises:
        ConfigError: sizes below 1, num_heads that does not divide dim_model, or dropout outside [0, 1).
    """

    context_setting = "max_len"

    def __init__(
        self,
        num_tokens: int,
        dim_model: int = 64,
        num_decoder_layers: int = 6,
        num_heads: int = 8,
        dim_feedforward: int = 512,
        dropout_p: float = 0.1,
        layer_norm_eps: float = 2e-4,
        relu_rescale: float = 1.0,
        norm_first: bool = True,
        max_len: int = 5000,
    ):
        super().__init__()
        check_positive(dim_model=dim_model, num_decoder_layers=num_decoder_layers, num_heads=num_heads)
        check_positive(dim_feedforward=dim_feedforward, layer_norm_eps=layer_norm_eps)
        check_positive(relu_rescale=relu_rescale, max_len=max_len)
        check_fraction(dropout_p=dropout_p)
        if dim_model % num_heads:
            divisors = [str(n) for n in range(1, dim_model + 1) if dim_model % n == 0]
            raise ConfigError("num_heads", num_heads, f"must divide dim_model={dim_model}: {', '.join(divisors)}")
        self.num_heads, self.max_context = num_heads, max_len
        self.embedding = nn.Embedding(num_tokens, dim_model)
        self.dropout_p = dropout_p
        # Not nn.TransformerEncoder, which would copy the initial weights of the first layer into all others.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim_model,
                num_heads,
                dim_feedforward,
                dropout_p,
                layer_norm_eps=layer_norm_eps,
                batch_first=True,
                norm_first=norm_first,
            )
            for _ in range(num_decoder_layers)
        )
        self.head = nn.Linear(dim_model, num_tokens)
        self.register_buffer("relu_rescale", torch.tensor([relu_rescale]))
        self.register_buffer("positions", sinusoids(max_len, dim_model), persistent=False)

    def init_state(self, batch_size: int) -> tuple[Cache, ...]:
        head_dim = self.embedding.embedding_dim // self.num_heads
        empty = self.head.weight.new_empty(batch_size, self.num_heads, 0, head_dim)
        return ((empty, empty),) * len(self.layers)

    def advance(self, tokens: Tensor, state: tuple[Cache, ...]) -> tuple[Tensor, tuple[Cache, ...]]:
        start = state[0][0].shape[2]
        end = start + tokens.shape[1]
        self.check_context(end)
        x = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim)  # (B, T, dim_model)
        x = x + self.positions[start:end]
        x = self.dropout(x)
        caches = []
        for layer, cache in zip(self.layers, state):
            x, cache = self.layer(layer, x, cache)
            caches.append(cache)
        return self.head(x), tuple(caches)

    def layer(self, layer: nn.TransformerEncoderLayer, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """(B, T, dim_model) -> (B, T, dim_model), and the extended cache."""
        if layer.norm_first:
            attended, cache = self.attention(layer, layer.norm1(x), cache)
            x = x + attended
            return x + self.feed_forward(layer, layer.norm2(x)), cache
        attended, cache = self.attention(layer, x, cache)
        x = layer.norm1(x + attended)
        return layer.norm2(x + self.feed_forward(layer, x)), cache

    def attention(self, layer: nn.TransformerEncoderLayer, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """(B, T, dim_model) -> (B, T, dim_model): attention to the cache and, causally, to the new tokens."""
        attn = layer.self_attn
        qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)  # (B, T, 3 * dim_model)
        # One copy here saves the matrix products a copy each. q, k and v are (B, num_heads, T, head_dim).
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        cache = extend(cache, k, v)
        attended = causal_attention(q, *cache, self.dropout_p if self.training else 0.0)
        return self.dropout(attn.out_proj(attended.transpose(1, 2).flatten(2))), cache

    def feed_forward(self, layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
        """(B, T, dim_model) -> (B, T, dim_model)."""
        hidden = relu_dropout(layer.linear1(x), self.dropout_p, self.training)  # (B, T, dim_feedforward)
        # The weight is smaller than the hidden layer, so it is cheaper to scale.
        return self.dropout(F.linear(hidden, self.relu_rescale * layer.linear2.weight, layer.linear2.bias))

    def dropout(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout_p, self.training)


def sinusoids(length: int, dim: int) -> Tensor:
    """(length, dim) positional encodings: sines in even columns, cosines in odd ones (Vaswani et al., section 3.5)."""
    position = torch.arange(length)[:, None]
    frequency = torch.exp(-math.log(10000.0) * torch.arange(0, dim, 2) / dim)
    table = torch.empty(length, dim)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency[: dim // 2])
    return table
