"""The linear recurrence in plain torch: ``sequential`` defines it, the others compute the same."""

from __future__ import annotations

import torch
from torch import Tensor

LOG_SPACE_CHUNK = 16
"""Steps over which ``log_space`` sums logarithms."""


def sequential(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """One step after the other. Arguments and result as in ``linear_recurrence.auto``."""
    h, states = h0, []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1)):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states, 1)


def parallel(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """A prefix scan (Hillis and Steele 1986) in ceil(log2(time)) passes over the sequence.

    The step (a, b) followed by the step (a', b') is the step (a a', a' b + b'). Arguments and result as in
    ``linear_recurrence.auto``.
    """
    b = torch.cat([b[:, :1] + a[:, :1] * h0[:, None], b[:, 1:]], 1)
    reach = 1
    while reach < b.shape[1]:
        b = torch.cat([b[:, :reach], b[:, reach:] + a[:, reach:] * b[:, :-reach]], 1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], 1)
        reach *= 2
    return b


def log_space(log_a: Tensor, log_b: Tensor, h0: Tensor) -> Tensor:
    """The recurrence from log a_t and log b_t, where products of many small a_t do not underflow (Heinsen 2023,
    arXiv 2311.06281).

    h_t = exp(A_t) (h_0 + sum over s <= t of exp(log b_s - A_s)), where A_t = log a_1 + ... + log a_t.

    Args:
        log_a, log_b: (batch, time, channels).
        h0: (batch, channels), not negative.

    Returns:
        (batch, time, channels) states, not their logarithms.
    """
    chunks = []
    # |A_t| grows with t, and so do rounding errors: after each chunk the sums start again from the state reached.
    for log_a_chunk, log_b_chunk in zip(log_a.split(LOG_SPACE_CHUNK, 1), log_b.split(LOG_SPACE_CHUNK, 1)):
        # log 0 is -inf, and its gradient nan. The smallest positive number is as negligible in every sum.
        log_h0 = h0.clamp_min(torch.finfo(h0.dtype).tiny).log()[:, None]
        log_a_sum = log_a_chunk.cumsum(1)
        log_sum = torch.cat([log_h0, log_b_chunk - log_a_sum], 1).logcumsumexp(1)[:, 1:]
        chunks.append((log_a_sum + log_sum).exp())
        h0 = chunks[-1][:, -1]
    return torch.cat(chunks, 1)
