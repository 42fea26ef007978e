"""Causal attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.ops.dropout import dropout


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, hidden: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, where each query attends to its own position and those before it (equation 1).

    Args:
        q: (B, H, T, D) queries of the last T of S positions, for H heads.
        k, v: (B, H, S, D) keys and values of all S positions.
        dropout_p: probability of dropping an attention weight; 0 outside training.
        hidden: (B, S) bool, the positions that no query attends to. Each query must have a position left.

    Returns:
        (B, H, T, D).
    """
    length, seen = q.shape[2], k.shape[2] - q.shape[2]
    if dropout_p and q.device.type == "cpu":
        return causal_attention_with_dropout(q, k, v, dropout_p, hidden)
    mask = None
    if (seen and length > 1) or hidden is not None:  # a single query attends to all keys
        mask = torch.ones(length, seen + length, dtype=torch.bool, device=q.device).tril(seen)
    if hidden is not None:
        mask = mask & ~hidden[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal=mask is None and not seen)


def causal_attention_with_dropout(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, hidden: Tensor | None) -> Tensor:
    """The same on a CPU, where F.scaled_dot_product_attention has no fused kernel with dropout and is slower."""
    length, positions = q.shape[2], k.shape[2]
    future = torch.full((length, positions), -torch.inf, dtype=q.dtype).triu(1 + positions - length)
    q, k, values = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(future, q, k.mT, alpha=q.shape[2] ** -0.5)
    if hidden is not None:
        scores = scores.unflatten(0, v.shape[:2]).masked_fill(hidden[:, None, None], -torch.inf).flatten(0, 1)
    weights = dropout(scores.softmax(2), dropout_p, training=True)
    return torch.bmm(weights, values).unflatten(0, v.shape[:2])
