"""The recurrences of minGRU and minLSTM in plain torch (Feng et al. 2024, arXiv 2410.01201)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.ops.linear_recurrence.reference import sequential

Recurrence = Callable[[Tensor, Tensor, Tensor], Tensor]
"""An implementation of the linear recurrence, from a, b and h0 to the states."""


def g(x: Tensor) -> Tensor:
    """A positive, continuous activation: x + 0.5 for x >= 0, else σ(x) (appendix B.3)."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


def mingru_keep_logit(update: Tensor) -> Tensor:
    """The logit of a_t = 1 - z_t from the pre-activation of the update gate z_t (section 3.1)."""
    return -update


def minlstm_keep_logit(forget: Tensor, input: Tensor) -> Tensor:
    """The logit of a_t = f_t / (f_t + i_t) from the pre-activations of the forget and the input gate (section 3.2)."""
    # f / (f + i) = σ(log f - log i), which is exact even where both gates underflow.
    return F.logsigmoid(forget) - F.logsigmoid(input)


def keep(logit: Tensor, signed: bool) -> Tensor:
    """The weight of the old state, a_t = σ(logit) or, with ``signed``, 2 a_t - 1 = tanh(logit / 2)."""
    return (logit / 2).tanh() if signed else logit.sigmoid()


def mingru(x: Tensor, h0: Tensor, positive: bool, signed: bool = False, recurrence: Recurrence = sequential) -> Tensor:
    """Arguments and result as in ``gated_recurrence.mingru``, on any device."""
    update, candidate = x.chunk(2, 2)
    return weighted_mean(mingru_keep_logit(update), candidate, h0, positive, signed, recurrence)


def minlstm(x: Tensor, h0: Tensor, positive: bool, signed: bool = False, recurrence: Recurrence = sequential) -> Tensor:
    """Arguments and result as in ``gated_recurrence.minlstm``, on any device."""
    forget, input, candidate = x.chunk(3, 2)
    return weighted_mean(minlstm_keep_logit(forget, input), candidate, h0, positive, signed, recurrence)


def weighted_mean(
    keep_logit: Tensor, candidate: Tensor, h0: Tensor, positive: bool, signed: bool, recurrence: Recurrence
) -> Tensor:
    """h_t = a_t * h_{t-1} + (1 - a_t) * c_t, where a_t = σ(keep_logit_t); with ``signed``, 2 a_t - 1 times h_{t-1}."""
    if positive:
        candidate = g(candidate)
    return recurrence(keep(keep_logit, signed), (-keep_logit).sigmoid() * candidate, h0)
