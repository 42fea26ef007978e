"""A training step of Mamba at the L5 defaults against mambapy's, with the same weights: time and peak memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from mambapy.mamba import Mamba, MambaConfig
from torch import Tensor, nn

from benchmarks.comparison import Comparison
from benchmarks.table import run
from rule_extrapolation.models.mamba import MambaLM

BATCH, TOKENS, VOCABULARY = 128, 33, 7


class MambaPyLM(nn.Module):
    """mambapy's layers between the embedding and the head of ours, with the same weights."""

    def __init__(self, ours: MambaLM):
        super().__init__()
        mixer = ours.backbone.layers[0].mixer
        d_inner, d_model = mixer.D.shape[0], ours.lm_head.in_features
        config = MambaConfig(
            d_model=d_model,
            n_layers=len(ours.backbone.layers),
            d_state=mixer.A_log.shape[1],
            expand_factor=d_inner // d_model,
            d_conv=mixer.conv1d.kernel_size[0],
        )
        self.layers = Mamba(config)
        self.layers.load_state_dict(ours.backbone.state_dict(), strict=False)
        self.embedding, self.norm, self.head = ours.backbone.embedding, ours.backbone.norm_f, ours.lm_head

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.embedding(tokens))))[..., :VOCABULARY].mT


def training_step(model: nn.Module) -> Callable[[], Tensor]:
    """Forward, backward and AdamW. Returns the loss."""
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(VOCABULARY, (BATCH, TOKENS + 1), generator=torch.Generator().manual_seed(0))

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ours": lambda: MambaLM(VOCABULARY),
    "mambapy": lambda: MambaPyLM(MambaLM(VOCABULARY)),
}


def peak_memory(name: str) -> float:
    """GiB of a process of its own that takes two steps."""
    command = [sys.executable, "-m", "benchmarks.mamba", name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024**2  # KiB on Linux


def comparisons() -> Iterator[Comparison]:
    memory = [peak_memory(name) for name in MODELS]
    note = f"peak memory {memory[0]:.2f} GiB, theirs {memory[1]:.2f} GiB: {memory[0] / memory[1]:.2f} (at most 0.25)"
    steps = []
    for model in MODELS.values():
        torch.manual_seed(0)
        steps.append(training_step(model()))
    name = f"Mamba training step, {BATCH} x {TOKENS} tokens"
    yield Comparison(name, steps[0], steps[1], "mambapy 1.2.0", 15, repeats=3, note=note)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        step = training_step(MODELS[sys.argv[1]]())
        step(), step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    else:
        run(comparisons())
