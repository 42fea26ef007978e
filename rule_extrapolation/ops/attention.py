"""Causal attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.ops.dropout import dropout


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, hidden: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, where each query attends to its own position and those before it (equation 1).

    Args:
        q: (B, H, T, D) queries of the last T of S positions, for H heads.
        k, v: (B, H, S, D) keys and values of all S positions.
        dropout_p: probability of dropping an attention weight; 0 outside training.
        hidden: (B, S) bool, the positions that no query attends to. Each query must have a position left.
        bias: (H, T, S), added to the scores q k^T / sqrt(D).

    Returns:
        (B, H, T, D).
    """
    length, seen = q.shape[2], k.shape[2] - q.shape[2]
    if dropout_p and q.device.type == "cpu":
        return causal_attention_with_dropout(q, k, v, dropout_p, hidden, bias)
    mask = None
    if (seen and length > 1) or hidden is not None or bias is not None:  # a single query attends to all keys
        mask = torch.ones(length, seen + length, dtype=torch.bool, device=q.device).tril(seen)
    if hidden is not None:
        mask = mask & ~hidden[:, None, None]
    if bias is not None:
        mask = bias.masked_fill(~mask, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal=mask is None and not seen)


def causal_attention_with_dropout(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, hidden: Tensor | None, bias: Tensor | None
) -> Tensor:
    """The same on a CPU, where F.scaled_dot_product_attention has no fused kernel with dropout and is slower."""
    length, positions = q.shape[2], k.shape[2]
    future = torch.full((length, positions), -torch.inf, dtype=q.dtype).triu(1 + positions - length)
    q, k, values = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(future, q, k.mT, alpha=q.shape[2] ** -0.5)
    if bias is not None:
        scores = (scores.unflatten(0, v.shape[:2]) + bias).flatten(0, 1)
    if hidden is not None:
        scores = scores.unflatten(0, v.shape[:2]).masked_fill(hidden[:, None, None], -torch.inf).flatten(0, 1)
    weights = dropout(scores.softmax(2), dropout_p, training=True)
    return torch.bmm(weights, values).unflatten(0, v.shape[:2])


def alibi(heads: int, length: int, positions: int, like: Tensor) -> Tensor:
    """The biases of ALiBi (Press et al. 2021, arXiv 2108.12409, section 3), for the last of some positions.

    Head h of H adds -m (i - j) to the score of query i and key j, where m = 2^(-8 h / H) for h = 1, ..., H.

    Returns:
        (heads, length, positions), of the device and dtype of ``like``.
    """
    slopes = 2.0 ** (-8 / heads * torch.arange(1, heads + 1, device=like.device, dtype=like.dtype))
    keys = torch.arange(positions, device=like.device, dtype=like.dtype)
    distances = keys[positions - length :, None] - keys
    return -slopes[:, None, None] * distances


def rotate(x: Tensor, start: int) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864, equations 15 and 34).

    Columns 2 i and 2 i + 1 of the vector at position t are turned by the angle t 10000^(-2 i / D), so that the product
    of a query and a key depends on their distance alone.

    Args:
        x: (B, H, T, D) queries or keys, with an even D.
        start: the position of the first of them.
    """
    dim = x.shape[3]
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, device=x.device, dtype=torch.float32) / dim)
    angle = torch.arange(start, start + x.shape[2], device=x.device)[:, None] * frequency  # (T, D / 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(3)
