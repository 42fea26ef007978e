"""Which weights decay (``optimizer.decay``)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def is_exempt(parameter: Tensor) -> bool:
    """Whether a parameter does not decay by convention: a bias, a norm's scale or another one with at most one
    dimension, or one whose model has set ``_no_weight_decay`` on it, as mamba-ssm does."""
    return getattr(parameter, "_no_weight_decay", parameter.ndim <= 1)


def with_decay(make_optimizer: partial[Optimizer], decay: str) -> Callable[[Iterable[Tensor]], Optimizer]:
    """A factory of optimizers, with a group of their own for parameters that do not decay.

    Args:
        make_optimizer: a class of torch.optim with its settings bound.
        decay: convention (as ``is_exempt`` says) or all.
    """
    parameters = inspect.signature(make_optimizer).parameters
    if decay == "all" or "weight_decay" not in parameters or not parameters["weight_decay"].default:
        return make_optimizer

    def make(parameters: Iterable[Tensor]) -> Optimizer:
        return make_optimizer(groups(list(parameters)))

    return make


def groups(parameters: list[Tensor]) -> list[dict[str, Any]]:
    """The groups of an optimizer, of which at least one is not empty."""
    decaying = {"params": [parameter for parameter in parameters if not is_exempt(parameter)]}
    others = {"params": [parameter for parameter in parameters if is_exempt(parameter)], "weight_decay": 0.0}
    return [group for group in (decaying, others) if group["params"]]
