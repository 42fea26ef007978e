from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_extrapolation.core.errors import ConfigError, check_choice, check_fraction, check_positive
from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.ops.attention import causal_attention
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

    Its layers are nn.TransformerEncoderLayer modules, and its values are theirs under a causal mask. Their computation
    is written out here because they cannot continue from a key/value cache.

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
            none: nothing, so that only the causal mask tells the order of tokens. by_row: each token of row b of a
            batch gets the encoding of position b. The position of a token in the sequence is then unknown, as with
            none, and logits depend on the row in which a sequence stands.
        mask_pad: do not attend to PAD. The first token is always attended to.
        copy_first_layer: all layers start from the initial weights of the first.

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
        positions: Literal["sinusoidal", "none", "by_row"] = "sinusoidal",
        mask_pad: bool = False,
        copy_first_layer: bool = False,
    ):
        super().__init__()
        check_positive(dim_model=dim_model, num_decoder_layers=num_decoder_layers, num_heads=num_heads)
        check_positive(dim_feedforward=dim_feedforward, layer_norm_eps=layer_norm_eps)
        check_positive(relu_rescale=relu_rescale, max_len=max_len)
        check_fraction(dropout_p=dropout_p)
        check_choice(("sinusoidal", "none", "by_row"), positions=positions)
        if dim_model % num_heads:
            divisors = [str(n) for n in range(1, dim_model + 1) if dim_model % n == 0]
            raise ConfigError("num_heads", num_heads, f"must divide dim_model={dim_model}: {', '.join(divisors)}")
        self.num_heads, self.position_encoding, self.mask_pad = num_heads, positions, mask_pad
        self.max_context = max_len if positions == "sinusoidal" else None
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
        if copy_first_layer:
            for layer in self.layers[1:]:
                layer.load_state_dict(self.layers[0].state_dict())
        self.head = nn.Linear(dim_model, num_tokens)
        self.register_buffer("relu_rescale", torch.tensor([relu_rescale]))
        self.register_buffer("positions", sinusoids(max_len, dim_model), persistent=False)

    def init_state(self, batch_size: int) -> TransformerState:
        head_dim = self.embedding.embedding_dim // self.num_heads
        empty = self.head.weight.new_empty(batch_size, self.num_heads, 0, head_dim)
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
        if self.position_encoding == "none":
            return x
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
        attn = layer.self_attn
        qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)  # (B, T, 3 * dim_model)
        # One copy here saves the matrix products a copy each. q, k and v are (B, num_heads, T, head_dim).
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        cache = extend(cache, k, v)
        attended = causal_attention(q, *cache, self.dropout_p if self.training else 0.0, hidden)
        return self.dropout(attn.out_proj(attended.transpose(1, 2).flatten(2))), cache

    def feed_forward(self, layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
        """(B, T, dim_model) -> (B, T, dim_model)."""
        # The weights are smaller than the hidden layer, so they are cheaper to scale.
        weight, bias = self.relu_rescale * layer.linear1.weight, self.relu_rescale * layer.linear1.bias
        hidden = relu_dropout(F.linear(x, weight, bias), self.dropout_p, self.training)  # (B, T, dim_feedforward)
        return self.dropout(F.linear(hidden, layer.linear2.weight / self.relu_rescale, layer.linear2.bias))

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
