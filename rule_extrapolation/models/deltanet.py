from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_extrapolation.core.errors import ConfigError, check_positive
from rule_extrapolation.models.eigenvalues import are_signed
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.ops.causal_conv import convolve_window
from rule_extrapolation.ops.delta_rule import delta_rule

LayerState = tuple[Tensor, Tensor]
"""The last inputs of the convolution, (B, d_conv - 1, channels), and the matrices, (B, num_heads, K, V)."""


class DeltaLayer(nn.Module):
    """Attention by the delta rule (arXiv 2406.06484, section 3.1): each token writes to a matrix and reads it.

    Args:
        num_writes: writes for each token, each with a key, a value and a strength of its own.
        gated: let the matrix decay at each token, and gate the output.
        signed: let the strength of a write reach 2 instead of 1, and thus the eigenvalues -1.
    """

    def __init__(self, d_model: int, num_heads: int, d_conv: int, num_writes: int, gated: bool, signed: bool):
        super().__init__()
        self.num_heads, self.num_writes, self.gated, self.signed = num_heads, num_writes, gated, signed
        channels = (1 + 2 * num_writes) * d_model  # of the query, and of the keys and values of each write
        self.in_proj = nn.Linear(d_model, channels, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, bias=False)
        self.strength = nn.Linear(d_model, num_writes * num_heads)
        self.norm = nn.RMSNorm(d_model // num_heads)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        if gated:
            self.gate = nn.Linear(d_model, d_model, bias=False)
            self.decay = nn.Linear(d_model, num_heads)
            self.A_log = nn.Parameter(torch.linspace(1, 16, num_heads).log())

    def init_state(self, batch_size: int) -> LayerState:
        weight = self.in_proj.weight
        size = weight.shape[1] // self.num_heads
        inputs = weight.new_zeros(batch_size, self.conv1d.kernel_size[0] - 1, weight.shape[0])
        return inputs, weight.new_zeros(batch_size, self.num_heads, size, size)

    def forward(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """(B, T, d_model) -> (B, T, d_model), and the state after it."""
        inputs, matrix = state
        window = torch.cat([inputs, self.in_proj(x)], 1)  # (B, d_conv - 1 + T, channels)
        mixed = F.silu(convolve_window(window, self.conv1d.weight, None))
        q, k, v = mixed.split([x.shape[2], self.num_writes * x.shape[2], self.num_writes * x.shape[2]], 2)
        q, k, v = self.heads(q, 1), self.heads(k, self.num_writes), self.heads(v, self.num_writes)
        beta = self.strength(x).sigmoid() * (2 if self.signed else 1)  # (B, T, num_writes * num_heads)
        beta = beta.unflatten(2, (self.num_writes, self.num_heads)).flatten(1, 2).mT
        # The query reads after the last write, and the decay comes before the first one.
        q = last_of(F.normalize(q, dim=3), self.num_writes)
        log_decay = first_of(self.log_decay(x), self.num_writes) if self.gated else None
        output, matrix = delta_rule(q, F.normalize(k, dim=3), v, beta, log_decay, matrix)
        output = self.norm(output[:, :, self.num_writes - 1 :: self.num_writes]).transpose(1, 2).flatten(2)
        if self.gated:
            output = output * F.silu(self.gate(x))
        inputs = window[:, window.shape[1] - inputs.shape[1] :]
        return self.out_proj(output), (inputs if x.shape[1] == 1 else inputs.clone(), matrix)

    def heads(self, x: Tensor, num: int) -> Tensor:
        """(B, T, num * d_model) -> (B, num_heads, T * num, head size)"""
        return x.unflatten(2, (num, self.num_heads, -1)).flatten(1, 2).transpose(1, 2)

    def log_decay(self, x: Tensor) -> Tensor:
        """(B, T, d_model) -> (B, num_heads, T): ln a, as in Mamba-2."""
        return (-self.A_log.exp() * F.softplus(self.decay(x))).mT


def first_of(x: Tensor, num: int) -> Tensor:
    """(B, H, T) -> (B, H, T * num): each value at the first of ``num`` places, and 0 at the others."""
    return F.pad(x.unsqueeze(3), (0, num - 1)).flatten(2)


def last_of(x: Tensor, num: int) -> Tensor:
    """(B, H, T, K) -> (B, H, T * num, K): each vector at the last of ``num`` places, and 0 at the others."""
    return F.pad(x.unsqueeze(3), (0, 0, num - 1, 0)).flatten(2, 3)


class SwiGLU(nn.Module):
    """A feed-forward network with a gate (Shazeer 2020, arXiv 2002.05202, equation 6)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, x = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * x)


class DeltaNet(LanguageModel):
    """DeltaNet (Yang et al. 2024, arXiv 2406.06484): linear attention whose memory is corrected instead of added to.

    Each block is a layer of the delta rule and a feed-forward network, with residual connections around both and
    normalisation before. Queries, keys and values pass through a short convolution and SiLU; queries and keys then
    have length 1. The state is one LayerState per block.

    Args:
        d_model: width of the residual stream.
        num_layers: number of blocks.
        num_heads: heads of each block, a divisor of d_model. Each has a matrix of (d_model / num_heads)^2 numbers.
        d_conv: width of the convolution in tokens.
        mlp_ratio: width of the feed-forward network, in multiples of d_model.
        eigenvalues: the range of those of a token's transition matrix, [0, 1] for writes of strength b in (0, 1), or
            [-1, 1] for b in (0, 2) (Grazzi et al. 2024, arXiv 2411.12537).
        num_writes: writes for each token; with more than one it is DeltaProduct.

    Raises:
        ConfigError: sizes below 1, heads that do not divide d_model, or eigenvalues in another range.
    """

    gated = False

    def __init__(
        self,
        num_tokens: int,
        d_model: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        d_conv: int = 4,
        mlp_ratio: int = 2,
        eigenvalues: Sequence[int] = (0, 1),
        num_writes: int = 1,
    ):
        super().__init__()
        check_positive(d_model=d_model, num_layers=num_layers, num_heads=num_heads, d_conv=d_conv, mlp_ratio=mlp_ratio)
        check_positive(num_writes=num_writes)
        if d_model % num_heads:
            raise ConfigError("num_heads", num_heads, f"must divide d_model={d_model}")
        options = (d_model, num_heads, d_conv, num_writes, self.gated, are_signed(eigenvalues))
        self.embedding = nn.Embedding(num_tokens, d_model)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.RMSNorm(d_model),
                    "delta": DeltaLayer(*options),
                    "mlp_norm": nn.RMSNorm(d_model),
                    "mlp": SwiGLU(d_model, mlp_ratio * d_model),
                }
            )
            for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(d_model)
        self.head = nn.Linear(d_model, num_tokens, bias=False)

    def init_state(self, batch_size: int) -> list[LayerState]:
        return [block["delta"].init_state(batch_size) for block in self.blocks]

    def advance(self, tokens: Tensor, state: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        x, after = self.embedding(tokens), []
        for block, layer_state in zip(self.blocks, state):
            mixed, layer_state = block["delta"](block["norm"](x), layer_state)
            after.append(layer_state)
            x = x + mixed
            x = x + block["mlp"](block["mlp_norm"](x))
        return self.head(self.norm(x)), after
