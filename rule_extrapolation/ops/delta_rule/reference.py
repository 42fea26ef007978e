from __future__ import annotations

import torch
from torch import Tensor


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Token by token, as the equation says. Arguments and results are those of ``ops.delta_rule``."""
    outputs = []
    for t in range(q.shape[2]):
        if log_decay is not None:
            state = log_decay[:, :, t, None, None].exp() * state
        key = k[:, :, t].unsqueeze(3)  # (B, H, K, 1)
        error = v[:, :, t].unsqueeze(2) - key.mT @ state  # (B, H, 1, V)
        state = state + beta[:, :, t, None, None] * key @ error
        outputs.append((q[:, :, t].unsqueeze(2) @ state).squeeze(2))
    return torch.stack(outputs, 2), state
