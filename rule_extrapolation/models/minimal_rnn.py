"""The common part of minLSTM and minGRU (Feng et al. 2024, arXiv 2410.01201).

Their gates depend on the input but not on the state, so that a layer is a linear recurrence,

    h_t = a_t * h_{t-1} + (1 - a_t) * c_t,

a weighted mean of the old state and a candidate. The two models differ in how they compute a_t.

With eigenvalues=[-1,1], it is

    h_t = (2 a_t - 1) * h_{t-1} + (1 - a_t) * c_t,

as Grazzi et al. 2024 (arXiv 2411.12537) change Mamba: the map from [0, 1] to [-1, 1] is smooth, adds no weights and
leaves the gate of the input as it was. A layer can then change the sign of its state whenever it reads a symbol, which
counts modulo 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_extrapolation.core.errors import ConfigError, check_choice, check_fraction, check_positive
from rule_extrapolation.models.eigenvalues import are_signed
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.ops import linear_recurrence
from rule_extrapolation.ops.gated_recurrence import g, keep

NORMS = {"none": nn.Identity, "layer": nn.LayerNorm, "rms": nn.RMSNorm}
SCANS = (*linear_recurrence.SCANS, "log")


def log_g(x: Tensor) -> Tensor:
    """The logarithm of ``g``."""
    return torch.where(x >= 0, (x.clamp_min(0) + 0.5).log(), F.logsigmoid(x))


class MinimalRNNLayer(nn.Module):
    """One layer: (B, T, input_dim) and a state (B, hidden_dim) -> (B, T, hidden_dim), the states after each token.

    Args:
        log_space: apply g to the candidate, which makes it positive.
        scan: the implementation of the recurrence, as in MinimalRNN.
        signed: keep the state with the weight 2 a_t - 1 instead of a_t.
    """

    num_gates: int

    fused: Callable[[Tensor, Tensor, bool, bool], Tensor]
    """Gates and recurrence in one operation, from the output of ``linear``, the initial state, ``log_space`` and
    ``signed``."""

    keep_logit: Callable[..., Tensor]
    """The logit of a_t, the share of the old state that is kept, from the pre-activations of the gates."""

    def __init__(self, input_dim: int, hidden_dim: int, log_space: bool, scan: str, signed: bool):
        super().__init__()
        self.log_space, self.scan, self.signed = log_space, scan, signed
        self.linear = nn.Linear(input_dim, (self.num_gates + 1) * hidden_dim)

    def forward(self, x: Tensor, h0: Tensor) -> Tensor:
        x = self.linear(x)  # (B, T, (num_gates + 1) * hidden_dim)
        if self.scan == "auto":
            return self.fused(x, h0, self.log_space, self.signed)
        *gates, candidate = x.chunk(self.num_gates + 1, -1)
        logit = self.keep_logit(*gates)
        if self.scan == "log":
            return linear_recurrence.log_space(F.logsigmoid(logit), F.logsigmoid(-logit) + log_g(candidate), h0)
        if self.log_space:
            candidate = g(candidate)
        recurrence = linear_recurrence.scan_named(self.scan)
        return recurrence(keep(logit, self.signed), (-logit).sigmoid() * candidate, h0)


class MinimalRNN(LanguageModel):
    """Minimal RNN layers between an embedding and a linear layer. The state is (num_layers, B, hidden_dim).

    Args:
        dropout: probability of dropout on each layer's output.
        log_space: make candidates positive by g, as the log-space scan requires. If false, g is the identity.
        scan: how the recurrence is computed; all choices give the same values. auto uses compiled kernels (numba on a
            CPU, Triton on CUDA), or without them sequential on a CPU and parallel elsewhere.
        residual: add each layer's input to its output.
        eigenvalues: the range of the weight of the old state, [0, 1] or [-1, 1]. Negative weights have no logarithm, so
            scan=log takes only the former. log_space=true keeps its meaning, positive candidates, with the other scans.
        norm: normalisation of each layer's input and of the last output: none, layer or rms.

    Raises:
        ConfigError: sizes below 1, residual connections between different widths, scan=log without log_space or with
            negative eigenvalues, or eigenvalues in another range.
    """

    supports_vmap = True
    layer_class: type[MinimalRNNLayer]

    def __init__(
        self,
        num_tokens: int,
        embedding_dim: int = 64,
        hidden_dim: int = 64,
        num_layers: int = 2,
        dropout: float = 0.0,
        log_space: bool = True,
        scan: Literal["auto", "sequential", "parallel", "log"] = "auto",
        residual: bool = False,
        norm: Literal["none", "layer", "rms"] = "none",
        eigenvalues: Sequence[int] = (0, 1),
    ):
        super().__init__()
        check_positive(embedding_dim=embedding_dim, hidden_dim=hidden_dim, num_layers=num_layers)
        check_fraction(dropout=dropout)
        check_choice(SCANS, scan=scan)
        check_choice(NORMS, norm=norm)
        if residual and embedding_dim != hidden_dim:
            raise ConfigError("hidden_dim", hidden_dim, f"must equal embedding_dim={embedding_dim} with residual=true")
        if scan == "log" and not log_space:
            raise ConfigError("scan", scan, "needs log_space=true; use auto, sequential or parallel")
        signed = are_signed(eigenvalues)
        if scan == "log" and signed:
            raise ConfigError("scan", scan, "needs eigenvalues=[0,1]; use auto, sequential or parallel")
        widths = [embedding_dim] + [hidden_dim] * num_layers
        self.hidden_dim, self.residual = hidden_dim, residual
        self.embedding = nn.Embedding(num_tokens, embedding_dim)
        self.layers = nn.ModuleList(
            self.layer_class(width, hidden_dim, log_space, scan, signed) for width in widths[:-1]
        )
        self.norms = nn.ModuleList(NORMS[norm](width) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, num_tokens)

    def init_state(self, batch_size: int) -> Tensor:
        return self.head.weight.new_zeros(len(self.layers), batch_size, self.hidden_dim)

    def advance(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(tokens)  # (B, T, embedding_dim)
        last_states = []
        for layer, norm, h0 in zip(self.layers, self.norms, state):
            h = layer(norm(x), h0)  # (B, T, hidden_dim)
            last_states.append(h[:, -1])
            h = self.dropout(h)
            x = x + h if self.residual else h
        return self.head(self.norms[-1](x)), torch.stack(last_states)
