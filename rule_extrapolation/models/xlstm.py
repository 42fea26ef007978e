from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import cpp_extension

from rule_extrapolation.core.errors import ConfigError, check_choice, check_fraction, check_positive
from rule_extrapolation.models.language_model import LanguageModel, runs_on_cuda

# On a machine with a GPU, importing xlstm fails without a CUDA toolkit, unless CUDA_HOME is set.
CUDA_HOME = cpp_extension.CUDA_HOME
cpp_extension.CUDA_HOME = CUDA_HOME or "none"
import xlstm  # noqa: E402
from xlstm.blocks.slstm.cell import sLSTMCell_cuda, sLSTMCell_vanilla  # noqa: E402

from rule_extrapolation.models.xlstm_backends import use_cpu_backends  # noqa: E402

cpp_extension.CUDA_HOME = CUDA_HOME

log = logging.getLogger(__name__)

BlockStates = dict[str, dict[str, Any]]
"""The package's state: for each block, the states of its cell and of its convolution. Empty before the first token."""

BACKENDS = ("auto", "vanilla", "cuda")
BIAS_INITS = ("powerlaw_blockdependent", "small_init", "standard", "zeros")
ACTIVATIONS = ("gelu", "relu", "relu^2", "sigmoid", "swish", "selu")
INNER_MULTIPLE = 64
"""The package rounds inner widths up to a multiple of this."""


class xLSTMLMModel(LanguageModel):
    """xLSTM (Beck et al. 2024, arXiv 2405.04517): a LanguageModel around the model of the package ``xlstm``.

    ``forward`` reads a sequence in parallel. Decoding uses the package's ``step``. The state is the number of tokens
    read and their BlockStates.

    The inner width of mLSTM blocks is twice embedding_dim, rounded up to a multiple of 64 as in the package, and
    further if num_heads or qkv_proj_blocksize require it.

    Args:
        slstm_at: the indices of the sLSTM blocks, from 0 on, or "all". The others are mLSTM blocks.
        num_heads: heads of each block.
        conv1d_kernel_size: width of a block's convolution in tokens. 0, for no convolution, is possible only if all
            blocks are sLSTM blocks.
        qkv_proj_blocksize: width of the blocks of mLSTM's block-diagonal query, key and value projections.
        proj_factor: width of the feed-forward network of sLSTM blocks, in multiples of embedding_dim; rounded up to a
            multiple of 64.
        act_fn: activation of this network.
        bias_init: initialisation of the biases of sLSTM's gates.
        context_length: the maximum length of a sequence in tokens.
        backend: implementation of sLSTM. vanilla is torch code; cuda is a kernel for GPUs that is compiled on first
            use; auto is the kernel if it compiles and runs.
        accelerator: the device the model will run on, as in Lightning's Trainer.

    Raises:
        ConfigError: sizes that the package cannot build, or a backend that is not available.
    """

    context_setting = "context_length"

    def __init__(
        self,
        num_tokens: int,
        num_blocks: int = 7,
        embedding_dim: int = 128,
        slstm_at: list[int] | Literal["all"] = (1,),
        num_heads: int = 4,
        conv1d_kernel_size: int = 4,
        qkv_proj_blocksize: int = 4,
        proj_factor: float = 1.3,
        act_fn: str = "gelu",
        bias_init: str = "powerlaw_blockdependent",
        dropout: float = 0.0,
        context_length: int = 98,
        backend: Literal["auto", "vanilla", "cuda"] = "auto",
        accelerator: str = "auto",
    ):
        super().__init__()
        check_positive(num_blocks=num_blocks, embedding_dim=embedding_dim, num_heads=num_heads)
        check_positive(qkv_proj_blocksize=qkv_proj_blocksize, proj_factor=proj_factor, context_length=context_length)
        check_choice(ACTIVATIONS, act_fn=act_fn)
        check_choice(BIAS_INITS, bias_init=bias_init)
        check_choice(BACKENDS, backend=backend)
        check_fraction(dropout=dropout)
        slstm_at = list(range(num_blocks)) if slstm_at == "all" else list(slstm_at)
        check_blocks(slstm_at, num_blocks)
        has_slstm, has_mlstm = bool(slstm_at), len(slstm_at) < num_blocks
        check_widths(embedding_dim, num_heads, conv1d_kernel_size, has_slstm, has_mlstm)
        if not has_slstm:
            backend = "vanilla"  # the backends differ only in sLSTM
        self.max_context = context_length
        self.backend, self.backend_reason = choose_backend(backend, accelerator, embedding_dim, num_heads)

        mlstm = xlstm.mLSTMLayerConfig(
            num_heads=num_heads,
            conv1d_kernel_size=conv1d_kernel_size,
            qkv_proj_blocksize=qkv_proj_blocksize,
            round_proj_up_to_multiple_of=inner_multiple(embedding_dim, num_heads, qkv_proj_blocksize),
        )
        slstm = xlstm.sLSTMLayerConfig(
            num_heads=num_heads,
            conv1d_kernel_size=conv1d_kernel_size,
            bias_init=bias_init,
            backend=self.backend,
            dtype="float32",  # the kernel's default is bfloat16, whose values differ from the torch code's
        )
        feedforward = xlstm.FeedForwardConfig(proj_factor=proj_factor, act_fn=act_fn, dropout=dropout)
        config = xlstm.xLSTMLMModelConfig(
            vocab_size=num_tokens,
            num_blocks=num_blocks,
            embedding_dim=embedding_dim,
            slstm_at=slstm_at,
            context_length=context_length,
            dropout=dropout,
            mlstm_block=xlstm.mLSTMBlockConfig(mlstm) if has_mlstm else None,
            slstm_block=xlstm.sLSTMBlockConfig(slstm, feedforward) if has_slstm else None,
        )
        with without_future_warnings():
            self.model = xlstm.xLSTMLMModel(config)
        self.model.reset_parameters()
        use_cpu_backends(self.model)
        for parameter in self.model.get_weight_decay_optim_groups()[1]:
            parameter._no_weight_decay = True
        for module in self.model.modules():
            if isinstance(module, sLSTMCell_cuda):
                keep_vanilla_layout(module)

    def forward(self, tokens: Tensor) -> Tensor:
        self.check_context(tokens.shape[1])
        return self.model(tokens).mT

    def init_state(self, batch_size: int) -> tuple[int, BlockStates]:
        return 0, {}

    def advance(self, tokens: Tensor, state: tuple[int, BlockStates]) -> tuple[Tensor, tuple[int, BlockStates]]:
        read, blocks = state
        read += tokens.shape[1]
        self.check_context(read)
        # The package's step changes the dictionary and the convolutions' states in place.
        blocks = {name: {**parts, "conv_state": clone(parts["conv_state"])} for name, parts in blocks.items()}
        logits = []
        for token in tokens.split(1, 1):
            token_logits, blocks = self.model.step(token, state=blocks)
            logits.append(token_logits)
        return torch.cat(logits, 1), (read, blocks)


def clone(conv_state: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
    return conv_state and tuple(tensor.clone() for tensor in conv_state)


def inner_multiple(embedding_dim: int, num_heads: int, qkv_proj_blocksize: int) -> int:
    """The inner width of mLSTM blocks is rounded up to a multiple of this."""
    width = INNER_MULTIPLE * math.ceil(2 * embedding_dim / INNER_MULTIPLE)
    if width % num_heads == 0 and width % qkv_proj_blocksize == 0 and width > num_heads:
        return INNER_MULTIPLE
    # 2 * num_heads, because a head of a single feature is normalised to zero.
    return math.lcm(INNER_MULTIPLE, 2 * num_heads, qkv_proj_blocksize)


def check_blocks(slstm_at: list[int], num_blocks: int) -> None:
    """Raise a ConfigError unless these are distinct indices of blocks."""
    if len(set(slstm_at)) < len(slstm_at) or not all(type(i) is int and 0 <= i < num_blocks for i in slstm_at):
        fix = f"num_blocks={num_blocks} has the blocks 0 to {num_blocks - 1}; list each at most once, or write all"
        raise ConfigError("slstm_at", slstm_at, fix)


def check_widths(embedding_dim: int, num_heads: int, kernel_size: int, has_slstm: bool, has_mlstm: bool) -> None:
    """Raise a ConfigError for sizes that the package rejects or that would result in nan or zeros."""
    if embedding_dim < 2:
        raise ConfigError("embedding_dim", embedding_dim, "must be at least 2: a single feature is normalised to zero")
    if kernel_size < 2 and (has_mlstm or kernel_size != 0):
        raise ConfigError("conv1d_kernel_size", kernel_size, "must be at least 2 (or 0 with slstm_at=all)")
    choices = [n for n in range(1, embedding_dim // 2 + 1) if embedding_dim % n == 0]
    if has_slstm and num_heads not in choices:
        fix = f"sLSTM blocks need a divisor of embedding_dim={embedding_dim} with two features or more per head"
        raise ConfigError("num_heads", num_heads, f"{fix}: {', '.join(map(str, choices))}; or set slstm_at=[]")


def choose_backend(backend: str, accelerator: str, embedding_dim: int, num_heads: int) -> tuple[str, str | None]:
    """Choose the implementation of sLSTM.

    Returns:
        vanilla or cuda, and why auto did not choose the kernel although there is a CUDA GPU.

    Raises:
        ConfigError: backend is cuda, and the kernel does not compile or run.
    """
    if backend == "vanilla" or (backend == "auto" and not runs_on_cuda(accelerator)):
        return "vanilla", None
    reason = try_kernel(embedding_dim, num_heads) if runs_on_cuda(accelerator) else "no CUDA GPU is in use"
    if reason and backend == "cuda":
        fix = "needs a CUDA GPU and the CUDA toolkit's compiler; set vanilla or auto"
        raise ConfigError("backend", backend, f"{fix} ({reason})")
    return ("vanilla", reason) if reason else ("cuda", None)


@functools.cache
def try_kernel(embedding_dim: int, num_heads: int) -> str | None:
    """Compile sLSTM's kernel if necessary and run it. Returns the error, or None if it works."""
    if CUDA_HOME is None:
        return "the CUDA toolkit was not found: set CUDA_HOME"
    log.info("Compiling xLSTM's CUDA kernel, which takes a while the first time")
    config = xlstm.sLSTMLayerConfig(embedding_dim=embedding_dim, num_heads=num_heads, backend="cuda", dtype="float32")
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        with torch.random.fork_rng([device]), device, quiet_stdout(), without_future_warnings():
            xlstm.sLSTMLayer(config)(torch.zeros(1, 2, embedding_dim)).sum().backward()
    except Exception as error:  # a compiler or driver may raise anything
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


@contextlib.contextmanager
def without_future_warnings() -> Iterator[None]:
    """Ignore FutureWarnings: the kernel uses decorators that torch has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Discard what this process and its child processes print."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):
            os.dup2(devnull.fileno(), 1)
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def keep_vanilla_layout(cell: sLSTMCell_cuda) -> None:
    """Let the kernel's cell save and load weights in the torch code's layout, so that both share checkpoints."""

    def reorder(state_dict: dict[str, Tensor], prefix: str, source: type, target: type) -> None:
        for name in ("_recurrent_kernel", "_bias"):
            if f"{prefix}{name}_" in state_dict:
                outside = getattr(source, f"{name}_int2ext")(cell, state_dict[f"{prefix}{name}_"])
                state_dict[f"{prefix}{name}_"] = getattr(target, f"{name}_ext2int")(cell, outside)

    def saved(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        reorder(state_dict, prefix, sLSTMCell_cuda, sLSTMCell_vanilla)

    def load(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        reorder(state_dict, prefix, sLSTMCell_vanilla, sLSTMCell_cuda)

    cell.register_state_dict_post_hook(saved)
    cell.register_load_state_dict_pre_hook(load)
