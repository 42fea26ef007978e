"""The linear recurrence h_t = a_t * h_{t-1} + b_t, elementwise, three ways.

All three take and return (batch, time, channels) and an initial state of (batch, channels), and give the same values.
``sequential`` is the definition; ``parallel`` needs about log2(time) passes instead of ``time``; ``log_space`` takes
the logarithms of positive coefficients, where products of many small gates do not underflow.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG_SPACE_CHUNK = 16


def sequential(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """One step after the other."""
    h, states = h0, []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1)):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states, 1)


def parallel(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """Prefix scan (Hillis & Steele 1986): composing two steps, (a, b) then (a', b'), gives (a a', a' b + b')."""
    b = torch.cat([b[:, :1] + a[:, :1] * h0[:, None], b[:, 1:]], 1)
    reach = 1
    while reach < b.shape[1]:
        b = torch.cat([b[:, :reach], b[:, reach:] + a[:, reach:] * b[:, :-reach]], 1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], 1)
        reach *= 2
    return b


def log_space(log_a: Tensor, log_b: Tensor, h0: Tensor) -> Tensor:
    """From log a_t and log b_t, with h_0 >= 0 (Heinsen 2023, arXiv 2311.06281).

    h_t = exp(A_t) (h_0 + sum_s exp(log b_s - A_s)), where A is the cumulative sum of log a.
    """
    chunks = []
    # A grows with time, and rounding errors with A: past a few steps, the sums begin anew from the state reached.
    for log_a_chunk, log_b_chunk in zip(log_a.split(LOG_SPACE_CHUNK, 1), log_b.split(LOG_SPACE_CHUNK, 1)):
        # log 0 would be -inf, whose gradient is nan; the least positive number vanishes in every sum just as well.
        log_h0 = h0.clamp_min(torch.finfo(h0.dtype).tiny).log()[:, None]
        log_a_sum = log_a_chunk.cumsum(1)
        log_sum = torch.cat([log_h0, log_b_chunk - log_a_sum], 1).logcumsumexp(1)[:, 1:]
        chunks.append((log_a_sum + log_sum).exp())
        h0 = chunks[-1][:, -1]
    return torch.cat(chunks, 1)
