"""The linear recurrence in plain torch: ``sequential`` defines it, the others compute the same."""

from __future__ import annotations

import torch
from torch import Tensor


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
    """The recurrence from log a_t and log b_t, by the prefix scan of ``parallel`` on logarithms.

    Feng et al. (2024, appendix B.2) compute exp(A_t) * (the sum over s <= t of exp(log b_s - A_s)), where
    A_t = log a_1 + ... + log a_t (Heinsen 2023, arXiv 2311.06281). That subtracts sums which grow with t and with the
    gates, and so loses digits; a prefix scan only adds logarithms.

    Args:
        log_a, log_b: (batch, time, channels), log_a at most 0.
        h0: (batch, channels).

    Returns:
        (batch, time, channels) states, not their logarithms.
    """
    lowest = torch.finfo(log_b.dtype).min / 2
    from_h0 = log_a.cumsum(1).exp() * h0[:, None]
    log_b = log_b.clamp_min(lowest)  # the gradient of logaddexp(-inf, -inf) is nan
    reach = 1
    while reach < log_b.shape[1]:
        later = torch.logaddexp(log_b[:, reach:], (log_a[:, reach:] + log_b[:, :-reach]).clamp_min(lowest))
        log_b = torch.cat([log_b[:, :reach], later], 1)
        log_a = torch.cat([log_a[:, :reach], log_a[:, reach:] + log_a[:, :-reach]], 1)
        reach *= 2
    return from_h0 + log_b.exp()
