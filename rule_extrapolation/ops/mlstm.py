"""The mLSTM cell of xLSTM (Beck et al. 2024, arXiv 2405.04517, appendix A.3), for all tokens at once or for one token.

Let d be the width of a head, i and f the gates before their activation, and F_t = sum over s <= t of log sigmoid(f_s).
With sums and maxima over s <= t,

    a_s = i_s - F_s
    M_t = max over s of a_s
    m_t = F_t + M_t
    C_ts = (q_t · k_s / sqrt(d)) exp(a_s - M_t)
    h_t = (sum over s of C_ts v_s) / (max(|sum over s of C_ts|, exp(-m_t)) + eps)
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-6
LARGE_EXPONENT = 80
"""exp(-m_t) grows no further than exp of this, which is finite and makes h_t 0 for any q, k and v but huge ones."""
LARGE_SUM = 256
"""Up to this, differences of sums of log sigmoid(f_s) are exact to 2e-5 in float32."""


def parallel_mlstm(
    queries: Tensor, keys: Tensor, values: Tensor, igate_preact: Tensor, fgate_preact: Tensor, **_: Any
) -> Tensor:
    """mLSTM for a whole sequence, with the arguments of xlstm's ``parallel_stabilized_simple``. Differentiable once.

    Args:
        queries, keys, values: (B, NH, T, DH) for NH heads of width DH, T at least 1.
        igate_preact, fgate_preact: (B, NH, T, 1) input and forget gates before their activation.

    Returns:
        (B, NH, T, DH) outputs h. In memory, the heads of a token are adjacent, as in a contiguous (B, T, NH, DH)
        tensor.
    """
    # Heads first: the work for each head is then batched products of slices that need no copy.
    inputs = (x.transpose(0, 1) for x in (queries, keys, values))
    gates = (x.squeeze(3).transpose(0, 1).contiguous() for x in (igate_preact, fgate_preact))
    return ParallelMLSTM.apply(*inputs, *gates).transpose(0, 1)


class ParallelMLSTM(torch.autograd.Function):
    """From (NH, B, T, DH) queries, keys and values and (NH, B, T) gates to (NH, B, T, DH)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        time, width = q.shape[2:]
        p, m, argmax = log_weights(i, f)
        p.masked_fill_(future(time, q.device), -math.inf).exp_()
        c = torch.empty_like(p)
        for c_head, q_head, k_head in zip(c, q, k):
            torch.baddbmm(c_head, q_head, k_head.mT, beta=0, alpha=width**-0.5, out=c_head)
        c.mul_(p)
        c_sum = c.sum(3)
        floor = m.neg().clamp_(max=LARGE_EXPONENT).exp_()
        normalizer = torch.maximum(c_sum.abs(), floor).add_(EPS)
        c.div_(normalizer[..., None])
        p.div_(normalizer[..., None])
        h = like_tokens(q)
        for h_head, c_head, v_head in zip(h, c, v):
            h_head.copy_(c_head @ v_head)
        ctx.save_for_backward(q, k, v, f, c, p, c_sum, floor, normalizer, argmax)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, ...]:
        q, k, v, f, c, p, c_sum, floor, normalizer, argmax = ctx.saved_tensors
        dq, dk, dv = like_tokens(q), like_tokens(k), like_tokens(v)
        dc = torch.empty_like(c)
        for dc_head, dv_head, dh_head, c_head, v_head in zip(dc, dv, dh, c, v):
            torch.bmm(dh_head, v_head.mT, out=dc_head)
            dv_head.copy_(c_head.mT @ dh_head)
        by_normalizer = torch.linalg.vecdot(dc, c).neg_()
        by_sum = by_normalizer * c_sum.sign() * (c_sum.abs() >= floor)
        d_floor = by_normalizer.div_(normalizer).mul_(floor).mul_(c_sum.abs() < floor).neg_()
        dc.add_(by_sum[..., None])
        d_log = c.mul(dc)
        dc.mul_(p)
        for dq_head, dk_head, dc_head, q_head, k_head in zip(dq, dk, dc, q, k):
            scale = q.shape[3] ** -0.5
            torch.mul(dc_head @ k_head, scale, out=dq_head)
            torch.mul(dc_head.mT @ q_head, scale, out=dk_head)
        di = d_log.sum(2)
        di.scatter_add_(2, argmax, d_floor - d_log.sum(3))
        df = (d_floor - di).flip(2).cumsum(2).flip(2).mul_((-f).sigmoid())
        return dq, dk, dv, di, df


def log_weights(i: Tensor, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithms of the weights of all tokens s in the sums of all tokens t, before q and k.

    Args:
        i, f: (NH, B, T) gates before their activation.

    Returns:
        (NH, B, T, T) i_s + F_t - F_s - m_t in row t and column s, arbitrary for s > t; then (NH, B, T) m_t and the s at
        which it is reached.
    """
    log_f = F.logsigmoid(f)
    f_sum = log_f.cumsum(2)
    if bool((f_sum > -LARGE_SUM).all()):
        a = i - f_sum
        a_max, argmax = a.cummax(2)
        return a[:, :, None, :] - a_max[:, :, :, None], f_sum + a_max, argmax
    # F_t - F_s would lose digits; the sum of log sigmoid(f_r) over s < r <= t does not.
    time = f.shape[2]
    log_p = log_f[:, :, :, None].expand(-1, -1, -1, time).tril(-1).cumsum(2).add_(i[:, :, None, :])
    m, argmax = log_p.masked_fill(future(time, f.device), -math.inf).max(3)
    return log_p.sub_(m[:, :, :, None]), m, argmax


class Gates(torch.autograd.Function):
    """(B, T, H) queries, keys and values -> the same three, and (B, T, G) gates: a linear map of their concatenation.

    The inputs are returned so that the backward pass adds their other gradients in the same matrix products.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(q, k, v, weight)
        gates = bias.expand(q.shape[:2].numel(), -1).clone()
        for x, part in zip((q, k, v), weight.chunk(3, 1)):
            gates.addmm_(x.flatten(0, 1), part.mT)
        return q.view_as(q), k.view_as(k), v.view_as(v), gates.view(*q.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor, d_gates: Tensor) -> tuple[Tensor, ...]:
        q, k, v, weight = ctx.saved_tensors
        d_gates = d_gates.flatten(0, 1)
        parts = zip((dq, dk, dv), weight.chunk(3, 1))
        dq, dk, dv = (torch.addmm(dx.flatten(0, 1), d_gates, part).view_as(dx) for dx, part in parts)
        d_weight = torch.cat([d_gates.mT @ x.flatten(0, 1) for x in (q, k, v)], 1)
        return dq, dk, dv, d_weight, d_gates.sum(0)


def mlstm_step(
    c_state: Tensor,
    n_state: Tensor,
    m_state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    igate_preact: Tensor,
    fgate_preact: Tensor,
    **_: Any,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """mLSTM for one token, with the arguments of xlstm's ``recurrent_step_stabilized_simple``.

    Args:
        c_state, n_state, m_state: (B, NH, DH, DH) memory, (B, NH, DH, 1) normalizer and (B, NH, 1, 1) stabilizer.
        q, k, v: (B, NH, 1, DH)
        igate_preact, fgate_preact: (B, NH, 1, 1) input and forget gates before their activation.

    Returns:
        (B, NH, 1, DH) outputs h, and the three states after this token.
    """
    decayed = F.logsigmoid(fgate_preact) + m_state
    m_state = torch.maximum(decayed, igate_preact)
    forget = (decayed - m_state).exp()
    k = k.mT * ((igate_preact - m_state).exp() / math.sqrt(k.shape[3]))
    # This state is large: memory is allocated for the new one only, not for intermediate results.
    c_state = (c_state * forget).addcmul_(k, v)
    n_state = n_state * forget + k
    normalizer = torch.maximum((q @ n_state).abs(), (-m_state).clamp_max(LARGE_EXPONENT).exp()) + EPS
    return q @ c_state / normalizer, (c_state, n_state, m_state)


def like_tokens(x: Tensor) -> Tensor:
    """An uninitialised (NH, B, T, DH) tensor with the memory layout of a contiguous (B, T, NH, DH) one."""
    num_heads, batch, time, width = x.shape
    return x.new_empty(batch, time, num_heads, width).permute(2, 0, 1, 3)


def future(time: int, device: torch.device) -> Tensor:
    """(T, T) bool, true where the column is greater than the row."""
    return torch.ones(time, time, dtype=torch.bool, device=device).triu_(1)
