from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_extrapolation.core.errors import ConfigError, check_choice, check_positive
from rule_extrapolation.models.eigenvalues import are_signed
from rule_extrapolation.models.language_model import LanguageModel, runs_on_cuda
from rule_extrapolation.ops.causal_conv import convolve_window
from rule_extrapolation.ops.selective_scan import selective_scan

VOCABULARY_MULTIPLE = 8
NORM_EPS = 1e-5
KERNEL_MAX_STATE = 256
DT_MIN, DT_MAX, DT_FLOOR = 0.001, 0.1, 1e-4
EMBEDDING_STD = 0.02

Scan = Callable[..., tuple[Tensor, Tensor]]
"""A function with the signature of ``selective_scan``."""

MixerState = tuple[Tensor, Tensor | None]
"""The last inputs of the convolution, (B, d_conv - 1, d_inner), and the SSM state, (B, d_inner, d_state), which is None
before the first token."""


class MambaMixer(nn.Module):
    """The Mamba-1 block (Gu & Dao 2023, figure 3): a short convolution and a gated selective state space model."""

    def __init__(self, d_model: int, d_state: int, d_conv: int, expand: int):
        super().__init__()
        d_inner, dt_rank = expand * d_model, math.ceil(d_model / 16)
        self.widths = [dt_rank, d_state, d_state]
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, sum(self.widths), bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.A_log._no_weight_decay = self.D._no_weight_decay = True
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

        bound = dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        dt = torch.empty(d_inner).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp().clamp_min(DT_FLOOR)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + (-torch.expm1(-dt)).log())  # the inverse of softplus

    def forward(self, x: Tensor, state: MixerState, scan: Scan) -> tuple[Tensor, MixerState]:
        """(B, T, d_model) -> (B, T, d_model), and the state after it."""
        inputs, h = state
        x, z = self.in_proj(x).chunk(2, -1)  # (B, T, d_inner) each
        window = torch.cat([inputs, x], 1)  # (B, d_conv - 1 + T, d_inner)
        x = F.silu(convolve_window(window, self.conv1d.weight, self.conv1d.bias))
        dt, B, C = self.x_proj(x).split(self.widths, -1)  # (B, T, dt_rank), (B, T, d_state), (B, T, d_state)
        A = -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()
        y, h = scan(x, F.softplus(self.dt_proj(dt)), A, B, C, h)
        y = (y + self.D * x) * F.silu(z)
        inputs = window[:, window.shape[1] - inputs.shape[1] :]
        # Cloned, so that the state does not keep the whole window in memory.
        return self.out_proj(y), (inputs if y.shape[1] == 1 else inputs.clone(), h)


class MambaLM(LanguageModel):
    """Mamba (Gu & Dao 2023, arXiv 2312.00752), with the weights of mamba-ssm's MambaLMHeadModel.

    The names, shapes, tying and, by default, the initialisation of the weights are those of mamba-ssm 2.3.2 with its
    defaults, so that a state dict can be loaded in either direction. The weights, but not the logits, are padded to a
    vocabulary that is a multiple of 8. The state is one MixerState per layer.

    Args:
        d_model: width of the residual stream.
        d_state: size of the state of each channel.
        d_conv: width of the convolution in tokens.
        n_layers: number of blocks.
        expand: channels of a block, d_inner, in multiples of d_model.
        backend: implementation of the selective scan. torch is this package's own code, compiled by numba on a CPU;
            mamba_ssm is mamba-ssm's kernel, which needs CUDA; auto is the kernel if it is available.
        init: mamba_ssm, or mamba_py for the initial weights of alxndrTL/mamba.py, of which Mészáros et al. 2024 (arXiv
            2409.13728) use a fork. There the embeddings, which are also the output weights, have a standard deviation
            of 1 instead of 0.02, and the projection out of each block is not divided by sqrt(n_layers).
        eigenvalues: the range of the factor of a state, [0, 1] for exp(dt A), or [-1, 1] for 2 exp(dt A) - 1 as in
            Grazzi et al. 2024 (arXiv 2411.12537), all else unchanged. mamba-ssm's kernel has only the former.
        accelerator: the device the model will run on, as in Lightning's Trainer.

    Raises:
        ConfigError: sizes below 1, or a backend that is not available, or eigenvalues in another range.
    """

    def __init__(
        self,
        num_tokens: int,
        d_model: int = 64,
        d_state: int = 32,
        d_conv: int = 8,
        n_layers: int = 8,
        expand: int = 2,
        backend: Literal["auto", "torch", "mamba_ssm"] = "auto",
        init: Literal["mamba_ssm", "mamba_py"] = "mamba_ssm",
        accelerator: str = "auto",
        eigenvalues: Sequence[int] = (0, 1),
    ):
        super().__init__()
        check_positive(d_model=d_model, d_state=d_state, d_conv=d_conv, n_layers=n_layers, expand=expand)
        check_choice(("mamba_ssm", "mamba_py"), init=init)
        self.num_tokens = num_tokens
        self.backend, self.scan, self.backend_reason = choose_scan(
            backend, accelerator, d_state, are_signed(eigenvalues)
        )
        padded = math.ceil(num_tokens / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        layers = [
            nn.ModuleDict(
                {"norm": nn.RMSNorm(d_model, NORM_EPS), "mixer": MambaMixer(d_model, d_state, d_conv, expand)}
            )
            for _ in range(n_layers)
        ]
        self.backbone = nn.ModuleDict(
            {
                "embedding": nn.Embedding(padded, d_model),
                "layers": nn.ModuleList(layers),
                "norm_f": nn.RMSNorm(d_model, NORM_EPS),
            }
        )
        self.lm_head = nn.Linear(d_model, padded, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight  # tied

        if init == "mamba_py":  # the embedding and the projections keep torch's own initial weights
            self.caveat = "initialised as mamba.py"
            return
        nn.init.normal_(self.backbone.embedding.weight, std=EMBEDDING_STD)
        with torch.no_grad():
            for layer in self.backbone.layers:
                layer.mixer.out_proj.weight /= math.sqrt(n_layers)

    def init_state(self, batch_size: int) -> tuple[MixerState, ...]:
        d_inner, _, d_conv = self.backbone.layers[0].mixer.conv1d.weight.shape
        return ((self.lm_head.weight.new_zeros(batch_size, d_conv - 1, d_inner), None),) * len(self.backbone.layers)

    def advance(self, tokens: Tensor, state: tuple[MixerState, ...]) -> tuple[Tensor, tuple[MixerState, ...]]:
        x = self.backbone.embedding(tokens)  # (B, T, d_model)
        states = []
        for layer, mixer_state in zip(self.backbone.layers, state):
            mixed, mixer_state = layer.mixer(layer.norm(x), mixer_state, self.scan)
            x = x + mixed
            states.append(mixer_state)
        return self.lm_head(self.backbone.norm_f(x))[..., : self.num_tokens], tuple(states)


def choose_scan(backend: str, accelerator: str, d_state: int, signed: bool = False) -> tuple[str, Scan, str | None]:
    """Choose the implementation of the selective scan.

    Returns:
        torch or mamba_ssm, the function, and why auto did not choose the kernel although there is a CUDA GPU.

    Raises:
        ConfigError: backend is mamba_ssm, which is not available or has no negative eigenvalues.
    """
    check_choice(("auto", "torch", "mamba_ssm"), backend=backend)
    if signed and backend == "mamba_ssm":
        raise ConfigError("backend", backend, "has no negative eigenvalues; set torch or auto")
    torch_scan = partial(selective_scan, signed=signed)
    if backend == "torch" or (backend == "auto" and not runs_on_cuda(accelerator)):
        return "torch", torch_scan, None
    try:
        if not runs_on_cuda(accelerator):
            raise ValueError("no CUDA GPU is in use")
        if signed:
            raise ValueError("its kernel has no negative eigenvalues")
        if d_state > KERNEL_MAX_STATE:
            raise ValueError(f"its kernel takes d_state up to {KERNEL_MAX_STATE}, not {d_state}")
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as error:  # a package built for another machine may raise anything
        reason = " ".join(f"mamba-ssm: {error}".split())
        if backend == "auto":
            return "torch", torch_scan, reason
        fix = 'needs a CUDA GPU and `pip install --no-build-isolation ".[cuda]"`; set torch or auto'
        raise ConfigError("backend", backend, f"{fix} ({reason})") from error

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
        # The kernel supports neither an initial state nor float64. A state usually means decoding one token.
        if h0 is not None or not x.is_cuda or x.dtype == torch.float64:
            return selective_scan(x, dt, A, B, C, h0)
        return kernel_scan(selective_scan_fn, x, dt, A, B, C)

    return "mamba_ssm", scan, None


def kernel_scan(
    selective_scan_fn: Callable[..., tuple[Tensor, Tensor]], x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor]:
    """``selective_scan`` without an initial state, by mamba-ssm's function. That has time as its last dimension,
    computes in float32 and gives no gradient through the last state."""
    u, delta, B, C = (tensor.float().mT for tensor in (x, dt, B, C))  # (B, ..., T)
    y, h = selective_scan_fn(u, delta, A.float(), B, C, return_last_state=True)
    return y.mT.to(x.dtype), h
