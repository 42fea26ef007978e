"""The gated delta rule, a linear recurrence of a matrix that is written to by an error-correcting rule.

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T,    o_t = S_t^T q_t

(Yang et al. 2024, arXiv 2412.06464, equation 10, with S transposed). With a_t = 1 it is the delta rule of DeltaNet
(Yang et al. 2024, arXiv 2406.06484). The eigenvalues of I - b k k^T for a unit vector k are 1 and 1 - b.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 32
"""Tokens that are computed at once. The cost of a token grows with it, the number of Python steps falls."""


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence, chunk by chunk (arXiv 2412.06464, section 3.3).

    Within a chunk, S_t is the decayed first state plus a sum of k_i u_i^T. The u solve a triangular system (the UT
    transform of arXiv 2406.06484). Decays are sums of logarithms between two tokens, so that none exceeds 1.

    Args:
        q, k: (B, H, T, K) queries, and keys of length 1.
        v: (B, H, T, V) values.
        beta: (B, H, T) the strength of each write.
        log_decay: (B, H, T) ln a, at most 0. None: a = 1.
        state: (B, H, K, V) the matrix before the first token.

    Returns:
        (B, H, T, V) outputs, and the matrix after the last token.
    """
    outputs = []
    for start in range(0, q.shape[2], CHUNK):
        part = slice(start, start + CHUNK)
        decay = None if log_decay is None else log_decay[:, :, part]
        output, state = chunk(q[:, :, part], k[:, :, part], v[:, :, part], beta[:, :, part], decay, state)
        outputs.append(output)
    return torch.cat(outputs, 2), state


def chunk(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """``delta_rule`` of T tokens at once."""
    length = q.shape[2]
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    keys, scores = k @ k.mT, q @ k.mT  # (B, H, T, T)
    if log_decay is None:
        since_start = until_end = None
        between = causal.to(q.dtype)
    else:
        between = decay_between(log_decay, causal)
        since_start = log_decay.cumsum(2).exp().unsqueeze(3)  # (B, H, T, 1)
        until_end = between[:, :, -1].unsqueeze(3)
    before = k @ state if since_start is None else since_start * (k @ state)  # what the state recalls of each key
    system = (beta.unsqueeze(3) * keys * between).tril(-1)
    u = torch.linalg.solve_triangular(system, beta.unsqueeze(3) * (v - before), upper=False, unitriangular=True)
    recalled = q @ state if since_start is None else since_start * (q @ state)
    output = recalled + (scores * between) @ u
    if since_start is None:
        return output, state + k.mT @ u
    return output, since_start[:, :, -1:] * state + (k * until_end).mT @ u


def decay_between(log_decay: Tensor, causal: Tensor) -> Tensor:
    """(B, H, T) -> (B, H, T, T): at (t, i), the product of the decays after token i, up to token t; 0 for i > t.

    Each is a sum of its own, since differences of long sums would lose what is small.
    """
    length = log_decay.shape[2]
    terms = log_decay.unsqueeze(3).expand(-1, -1, -1, length).masked_fill(~causal.tril(-1), 0)
    return terms.cumsum(2).masked_fill(~causal, -torch.inf).exp()
