from __future__ import annotations

from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rule_extrapolation.core.errors import ConfigError, check_choice


def inverse_sqrt(
    optimizer: Optimizer, warmup: int = 100, interval: Literal["step", "epoch"] = "step"
) -> dict[str, Any]:
    """Lightning's scheduler configuration of the inverse-square-root schedule (Vaswani et al. 2017, section 5.3).

    After t steps (or epochs), the learning rate is lr * t / warmup up to t = warmup, and then lr * sqrt(warmup / t). It
    starts at 0, as in the experiments of Mészáros et al. (2024).

    Args:
        warmup: steps or epochs until the learning rate is lr.
        interval: what t counts.

    Raises:
        ConfigError: ``warmup`` is below 1, or the interval is unknown.
    """
    if warmup < 1:
        raise ConfigError("warmup", warmup, "must be 1 or more")
    check_choice(["step", "epoch"], interval=interval)

    def factor(t: int) -> float:
        return t / warmup if t < warmup else (warmup / t) ** 0.5

    return {"scheduler": LambdaLR(optimizer, factor), "interval": interval}


def constant(optimizer: Optimizer) -> dict[str, Any]:
    """Lightning's scheduler configuration of a constant learning rate."""
    return {"scheduler": LambdaLR(optimizer, lambda t: 1.0), "interval": "epoch"}
