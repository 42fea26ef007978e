"""Whether a run's settings let it train: its learning rate changes weights, and its precision works."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from omegaconf import DictConfig
from torch.optim import Optimizer

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.models.language_model import LanguageModel

MOST_UPDATES = 10_000
"""How many changes of the learning rate are tried."""
LIMITS = ("max_steps", "max_epochs")
DTYPES = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64, "64": torch.float64}


def check_learning_rate(cfg: DictConfig, data: Any, optimizer: Optimizer, schedule: dict[str, Any]) -> None:
    """Raise a ConfigError if the learning rate is 0 in all steps.

    Args:
        optimizer: of parameters without gradients, whose rates this function may change.
        schedule: Lightning's scheduler configuration of the optimizer.
    """
    for _ in range(1 + min(rate_changes(cfg, data, optimizer, schedule), MOST_UPDATES)):
        if any(group["lr"] for group in optimizer.param_groups):
            return
        optimizer.step()
        schedule["scheduler"].step()
    key = "max_epochs" if (cfg.trainer.get("max_epochs") or -1) > 0 else "max_steps"
    fix = "the learning rate is 0 in all of its steps, and no weight would change; train longer, or set"
    raise ConfigError(f"trainer.{key}", cfg.trainer.get(key), f"{fix} scheduler=constant")


def rate_changes(cfg: DictConfig, data: Any, optimizer: Optimizer, schedule: dict[str, Any]) -> float:
    """How often the schedule changes the learning rate before the last step of training."""
    if any(group["lr"] for group in optimizer.param_groups):
        return 0
    steps, epochs = (limit if (limit := cfg.trainer.get(key) or -1) > 0 else math.inf for key in LIMITS)
    by_step = schedule.get("interval", "epoch") == "step"
    if (epochs if by_step else steps) < math.inf:
        batches = math.ceil(len(data.train_dataloader()) / (cfg.trainer.get("accumulate_grad_batches") or 1))
        steps, epochs = min(steps, epochs * batches), min(epochs, steps / batches)
    counted = steps if by_step else epochs
    return MOST_UPDATES if counted == math.inf else (math.ceil(counted) - 1) // schedule.get("frequency", 1)


def check_precision(cfg: DictConfig, model: LanguageModel) -> None:
    """Raise a ConfigError if the model cannot be trained in the precision that ``trainer.precision`` asks for on a CPU.

    Two tokens are read and differentiated, since what a CPU supports depends on the machine and on the layers.
    """
    precision = str(cfg.trainer.get("precision"))
    if precision not in ("16-mixed", "bf16-mixed", *DTYPES) or not runs_on_cpu(cfg):
        return
    if precision == "16-mixed":
        raise ConfigError("trainer.precision", precision, "needs a GPU; set bf16-mixed")
    if not model.num_parameters:
        return
    try:
        try_step(copy.deepcopy(model), precision)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        fix = f"does not work for {cfg.model.name} on this CPU; leave it out, or use a GPU ({reason})"
        raise ConfigError("trainer.precision", precision, fix) from error


def try_step(model: LanguageModel, precision: str) -> None:
    tokens = torch.zeros(1, 2, dtype=torch.long)
    if any(parameter.is_meta for parameter in model.parameters()):  # the weights do not matter
        model.to_empty(device="cpu")
        for tensor in model.state_dict(keep_vars=True).values():
            tensor.detach().zero_()
    model = model.to(DTYPES.get(precision))
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16, enabled=precision not in DTYPES):
        model.continuation_logits(tokens, tokens).float().logsumexp(1).sum().backward()


def runs_on_cpu(cfg: DictConfig) -> bool:
    accelerator = cfg.trainer.get("accelerator", "auto")
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator == "cpu" or (accelerator == "auto" and not has_gpu)
