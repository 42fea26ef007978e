"""A training step of xLSTM, ours beside the package called directly: ``python -m benchmarks.xlstm_step``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.comparison import Comparison, measure
from rule_extrapolation.models.xlstm import xlstm, xLSTMLMModel

NUM_TOKENS = 7
BATCH, TIME = 128, 33


def comparisons() -> Iterator[Comparison]:
    torch.manual_seed(0)
    ours = xLSTMLMModel(NUM_TOKENS, backend="vanilla")
    theirs = package_model(ours)
    tokens = torch.randint(0, NUM_TOKENS, (BATCH, TIME))
    yield Comparison(
        "xLSTM step, L5 defaults",
        training_step(ours, tokens),
        training_step(theirs, tokens, lambda logits: logits.mT),
        f"xlstm {xlstm.__version__}",
        at_least=1.5,
    )


def package_model(ours: xLSTMLMModel) -> xlstm.xLSTMLMModel:
    """The package's model with the configuration and the weights of ours, and nothing of ours in it."""
    theirs = xlstm.xLSTMLMModel(copy.deepcopy(ours.model.config))
    theirs.load_state_dict(ours.model.state_dict())
    return theirs


def training_step(
    model: nn.Module, tokens: Tensor, to_classes: Callable[[Tensor], Tensor] = lambda logits: logits
) -> Callable[[], float]:
    """Forward, backward and AdamW, as a batch takes them.

    Args:
        to_classes: from what the model returns to (B, num_tokens, T) logits.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    targets = tokens.roll(-1, 1)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(to_classes(model(tokens)), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    for comparison in comparisons():
        timing = measure(comparison)
        print(
            f"{comparison.name}: {timing.ours:.3f} s, {comparison.peer_name} {timing.peer:.3f} s, {timing.ratio:.2f}x"
        )
