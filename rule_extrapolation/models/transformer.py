from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_extrapolation.core.errors import ConfigError, check_choice, check_fraction, check_positive
from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.ops.attention import alibi, causal_attention, rotate
from rule_extrapolation.ops.dropout import dropout, relu_dropout
from rule_extrapolation.ops.kv_cache import Cache, extend


class TransformerState(NamedTuple):
    """What a transformer remembers of S tokens."""

    caches: tuple[Cache, ...]
    """The keys and values of each layer."""
    hidden: Tensor | None
    """(B, S) bool: the positions that are not attended to, if PAD is masked."""


class TransformerDecoder(LanguageModel):
    """Decoder-only transformer (Vaswani et al. 2017).

    By default its layers are nn.TransformerEncoderLayer modules, and its values are theirs under a causal mask. Their
    computation is written out here because they cannot continue from a key/value cache.

    The code of Mészáros et al. 2024 (arXiv 2409.13728, commit 6ab9b70) has ``positions="by_row"``, ``mask_pad`` and
    ``copy_first_layer``. They are here to reproduce its figures.

    Args:
        dim_model: width of the residual stream.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout_p: probability of dropout on embeddings, attention weights and both branches of each layer.
        relu_rescale: a fixed s > 0; the feed-forward networks compute relu(s x) / s. That is relu(x) for any s, and its
            gradient is the same too.
        norm_first: normalise before each branch (pre-norm) instead of after it (post-norm).
        max_len: the maximum length of a sequence in tokens with sinusoidal positions, and the maximum number of rows
            with positions by row.
        positions: what is added to the embeddings. sinusoidal: the encoding of each token's position in the sequence.
            learned: a trained vector for each position. rope: nothing, but queries and keys are rotated by their
            position (Su et al. 2021, arXiv 2104.09864). alibi: nothing, but attention weights fall with the distance
            (Press et al. 2021, arXiv 2108.12409), as 2^(-8 h / H) in head h of H for any H.
            none: nothing, so that only the causal mask tells the order of tokens. by_row: each token of row b of a
            batch gets the encoding of position b. The position of a token in the sequence is then unknown, as with
            none, and logits depend on the row in which a sequence stands.
        mask_pad: do not attend to PAD. The first token is always attended to.
        copy_first_layer: all layers start from the initial weights of the first.

        norm: layer for LayerNorm, or rms for RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467).
        activation: of the feed-forward networks, relu, gelu, or swiglu, which computes W_2 (silu(W_1 x) * V x) (Shazeer
            2020, arXiv 2002.05202, equation 6, with biases). V makes it larger by half at the same dim_feedforward.
        num_key_value_heads: how many heads of keys and values the heads of queries share: num_heads if None, 1 for
            multi-query attention (Shazeer 2019, arXiv 1911.02150), or a divisor (Ainslie et al. 2023, arXiv
            2305.13245). The cache shrinks with it.
        num_positions: the maximum length of a sequence in tokens with learned positions.

    Raises:
        ConfigError: sizes below 1, num_heads that does not divide dim_model, num_key_value_heads that does not divide
            num_heads, an odd width of a head with rope, relu_rescale with another activation, dropout outside [0, 1).
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
        positions: Literal["sinusoidal", "learned", "rope", "alibi", "none", "by_row"] = "sinusoidal",
        mask_pad: bool = False,
        copy_first_layer: bool = False,
        norm: Literal["layer", "rms"] = "layer",
        activation: Literal["relu", "gelu", "swiglu"] = "relu",
        num_key_value_heads: int | None = None,
        num_positions: int = 512,
    ):
        super().__init__()
        check_positive(dim_model=dim_model, num_decoder_layers=num_decoder_layers, num_heads=num_heads)
        check_positive(dim_feedforward=dim_feedforward, layer_norm_eps=layer_norm_eps)
        check_positive(relu_rescale=relu_rescale, max_len=max_len)
        check_fraction(dropout_p=dropout_p)
        check_choice(("sinusoidal", "learned", "rope", "alibi", "none", "by_row"), positions=positions)
        check_choice(("layer", "rms"), norm=norm)
        check_choice(("relu", "gelu", "swiglu"), activation=activation)
        kv_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        check_positive(num_key_value_heads=kv_heads, num_positions=num_positions)
        if dim_model % num_heads:
            divisors = [str(n) for n in range(1, dim_model + 1) if dim_model % n == 0]
            raise ConfigError("num_heads", num_heads, f"must divide dim_model={dim_model}: {', '.join(divisors)}")
        if num_heads % kv_heads:
            raise ConfigError("num_key_value_heads", kv_heads, f"must divide num_heads={num_heads}")
        if positions == "rope" and dim_model // num_heads % 2:
            raise ConfigError(
                "positions", positions, f"needs an even dim_model / num_heads, not {dim_model // num_heads}"
            )
        if activation != "relu" and relu_rescale != 1:
            raise ConfigError("relu_rescale", relu_rescale, f"needs activation=relu, not {activation}")
        self.num_heads, self.position_encoding, self.mask_pad = num_heads, positions, mask_pad
        self.num_key_value_heads, self.activation = kv_heads, activation
        self.max_context = {"sinusoidal": max_len, "learned": num_positions}.get(positions)
        self.rows_are_independent = positions != "by_row"
        caveats = {
            "positions by batch row": positions == "by_row",
            "PAD masked": mask_pad,
            "layers start equal": copy_first_layer,
        }
        self.caveat = ", ".join(caveat for caveat, holds in caveats.items() if holds) or None
        self.embedding = nn.Embedding(num_tokens, dim_model)
        self.dropout_p = dropout_p
        # nn.TransformerEncoder would copy the initial weights of the first layer into all others.
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
        for layer in self.layers:
            adapt(layer, norm, activation, dim_model // num_heads * kv_heads)
        if copy_first_layer:
            for layer in self.layers[1:]:
                layer.load_state_dict(self.layers[0].state_dict())
        self.head = nn.Linear(dim_model, num_tokens)
        self.register_buffer("relu_rescale", torch.tensor([relu_rescale]))
        if positions == "learned":
            self.position_embedding = nn.Embedding(num_positions, dim_model)
        self.register_buffer("positions", sinusoids(max_len, dim_model), persistent=False)

    def init_state(self, batch_size: int) -> TransformerState:
        head_dim = self.embedding.embedding_dim // self.num_heads
        empty = self.head.weight.new_empty(batch_size, self.num_key_value_heads, 0, head_dim)
        hidden = torch.zeros(batch_size, 0, dtype=torch.bool, device=empty.device) if self.mask_pad else None
        return TransformerState(((empty, empty),) * len(self.layers), hidden)

    def advance(self, tokens: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        start = state.caches[0][0].shape[2]
        hidden = self.with_pad(tokens, state.hidden) if self.mask_pad else None
        x = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim)  # (B, T, dim_model)
        x = self.dropout(self.add_positions(x, start))
        caches = []
        for layer, cache in zip(self.layers, state.caches):
            x, cache = self.layer(layer, x, cache, hidden)
            caches.append(cache)
        return self.head(x), TransformerState(tuple(caches), hidden)

    def with_pad(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """(B, T) tokens after S others, of which (B, S) are hidden -> (B, S + T) bool: which are hidden."""
        hidden = torch.cat([hidden, tokens == PAD], 1)
        hidden[:, 0] = False
        return hidden

    def add_positions(self, x: Tensor, start: int) -> Tensor:
        """(B, T, dim_model) -> the same with the encodings of positions, where T tokens follow ``start`` others.

        Raises:
            ValueError: more tokens, or rows, than there are encodings.
        """
        rows, length, _ = x.shape
        if self.position_encoding in ("rope", "alibi", "none"):
            return x
        if self.position_encoding == "learned":
            self.check_context(start + length)
            return x + self.position_embedding.weight[start : start + length]
        if self.position_encoding == "sinusoidal":
            self.check_context(start + length)
            return x + self.positions[start : start + length]
        if rows > len(self.positions):
            raise ValueError(f"positions=by_row has encodings for {len(self.positions)} rows, not {rows}")
        return x + self.positions[:rows, None]

    def layer(
        self, layer: nn.TransformerEncoderLayer, x: Tensor, cache: Cache, hidden: Tensor | None
    ) -> tuple[Tensor, Cache]:
        """(B, T, dim_model) -> (B, T, dim_model), and the extended cache."""
        if layer.norm_first:
            attended, cache = self.attention(layer, layer.norm1(x), cache, hidden)
            x = x + attended
            return x + self.feed_forward(layer, layer.norm2(x)), cache
        attended, cache = self.attention(layer, x, cache, hidden)
        x = layer.norm1(x + attended)
        return layer.norm2(x + self.feed_forward(layer, x)), cache

    def attention(
        self, layer: nn.TransformerEncoderLayer, x: Tensor, cache: Cache, hidden: Tensor | None
    ) -> tuple[Tensor, Cache]:
        """(B, T, dim_model) -> (B, T, dim_model): attention to the cache and, causally, to the new tokens."""
        q, k, v = self.queries_keys_values(layer.self_attn, x, cache[0].shape[2])
        cache = extend(cache, k, v)
        k, v = self.shared(cache)
        bias = self.bias(q.shape[2], k) if self.position_encoding == "alibi" else None
        attended = causal_attention(q, k, v, self.dropout_p if self.training else 0.0, hidden, bias)
        return self.dropout(layer.self_attn.out_proj(attended.transpose(1, 2).flatten(2))), cache

    def queries_keys_values(self, attn: nn.MultiheadAttention, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, dim_model) after ``start`` other tokens -> (B, num_heads, T, head_dim) queries, and keys and values of
        as many heads as they have."""
        qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)  # (B, T, 3 * dim_model) or less
        heads = self.num_heads, self.num_key_value_heads, self.num_key_value_heads
        # One copy here saves the matrix products a copy each.
        q, k, v = qkv.unflatten(2, (sum(heads), -1)).transpose(1, 2).contiguous().split(heads, 1)
        if self.position_encoding == "rope":
            q, k = rotate(q, start), rotate(k, start)
        return q, k, v

    def shared(self, cache: Cache) -> Cache:
        """Keys and values of ``num_key_value_heads`` heads, for each of the ``num_heads`` heads of queries."""
        queries_per_key = self.num_heads // self.num_key_value_heads
        if queries_per_key == 1:
            return cache
        keys, values = cache
        return keys.repeat_interleave(queries_per_key, 1), values.repeat_interleave(queries_per_key, 1)

    def bias(self, length: int, keys: Tensor) -> Tensor:
        return alibi(self.num_heads, length, keys.shape[2], keys)

    def attention_weights(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """The mean over layers and heads. What a row lacks to 1 is attention to the continuation."""
        read, seen = torch.cat([prompt, tokens[:, :-1]], 1), prompt.shape[1]
        empty = self.init_state(len(read))
        hidden = self.with_pad(read, empty.hidden) if self.mask_pad else None
        x = self.add_positions(self.embedding(read) * math.sqrt(self.embedding.embedding_dim), 0)
        weights = []
        for layer, cache in zip(self.layers, empty.caches):
            q, k, v = self.queries_keys_values(layer.self_attn, layer.norm1(x) if layer.norm_first else x, 0)
            k, _ = self.shared((k, v))
            scores = q @ k.mT / math.sqrt(q.shape[3])  # (B, num_heads, T, T)
            if self.position_encoding == "alibi":
                scores = scores + self.bias(k.shape[2], k)
            blocked = torch.ones_like(scores, dtype=torch.bool).triu(1)
            if hidden is not None:
                blocked = blocked | hidden[:, None, None]
            weights.append(scores.masked_fill(blocked, -torch.inf).softmax(3).mean(1))
            x, _ = self.layer(layer, x, cache, hidden)
        return torch.stack(weights).mean(0)[:, seen - 1 :, :seen]

    def feed_forward(self, layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
        """(B, T, dim_model) -> (B, T, dim_model)."""
        if self.activation != "relu":
            inner = layer.linear1(x)
            inner = F.gelu(inner) if self.activation == "gelu" else F.silu(inner) * layer.gate(x)
            return self.dropout(layer.linear2(self.dropout(inner)))
        # The weights are smaller than the hidden layer, so they are cheaper to scale.
        weight, bias = self.relu_rescale * layer.linear1.weight, self.relu_rescale * layer.linear1.bias
        hidden = relu_dropout(F.linear(x, weight, bias), self.dropout_p, self.training)  # (B, T, dim_feedforward)
        return self.dropout(F.linear(hidden, layer.linear2.weight / self.relu_rescale, layer.linear2.bias))

    def dropout(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout_p, self.training)


def adapt(layer: nn.TransformerEncoderLayer, norm: str, activation: str, kv_dim: int) -> None:
    """Give a layer RMSNorm, the third matrix of SwiGLU, and ``kv_dim`` columns of keys and of values."""
    dim, inner = layer.linear1.in_features, layer.linear1.out_features
    if norm == "rms":
        layer.norm1, layer.norm2 = (nn.RMSNorm(dim, layer.norm1.eps) for _ in range(2))
    if activation == "swiglu":
        layer.gate = nn.Linear(dim, inner)
    if kv_dim != dim:
        attn = layer.self_attn
        attn.in_proj_weight = nn.Parameter(torch.empty(dim + 2 * kv_dim, dim))
        nn.init.xavier_uniform_(attn.in_proj_weight)
        attn.in_proj_bias = nn.Parameter(torch.zeros(dim + 2 * kv_dim))


def sinusoids(length: int, dim: int) -> Tensor:
    """(length, dim) positional encodings: sines in even columns, cosines in odd ones (Vaswani et al., section 3.5)."""
    position = torch.arange(length)[:, None]
    frequency = torch.exp(-math.log(10000.0) * torch.arange(0, dim, 2) / dim)
    table = torch.empty(length, dim)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency[: dim // 2])
    return table
