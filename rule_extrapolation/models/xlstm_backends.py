"""Faster CPU implementations of modules of the package ``xlstm``, with the same weights, values and gradients.

Each class replaces a module of the package. On other devices and under autocast it calls the package's own code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from xlstm.blocks.mlstm.backends import parallel_stabilized_simple, recurrent_step_stabilized_simple
from xlstm.blocks.mlstm.cell import mLSTMCell
from xlstm.blocks.slstm.cell import sLSTMCell_vanilla
from xlstm.components.conv import CausalConv1d
from xlstm.components.linear_headwise import LinearHeadwiseExpand
from xlstm.components.ln import MultiHeadLayerNorm

from rule_extrapolation.ops.block_diagonal import block_diagonal
from rule_extrapolation.ops.causal_conv import causal_conv
from rule_extrapolation.ops.mlstm import Gates, mlstm_step, parallel_mlstm
from rule_extrapolation.ops.slstm import slstm


def use_cpu_backends(model: nn.Module) -> None:
    """Replace the modules of one model of the package by the classes below."""
    for module in model.modules():
        if isinstance(module, mLSTMCell):
            module.backend_fn, module.backend_fn_step = parallel_backend, step_backend
        # Only the class of the object changes, so that its parameters and their names remain.
        module.__class__ = CLASSES.get(type(module), type(module))


def applies(x: Tensor) -> bool:
    """Whether to use the implementations below."""
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def parallel_backend(queries: Tensor, **others: Tensor) -> Tensor:
    return (parallel_mlstm if applies(queries) else parallel_stabilized_simple)(queries, **others)


def step_backend(c_state: Tensor, **others: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    return (mlstm_step if applies(c_state) else recurrent_step_stabilized_simple)(c_state, **others)


class MatrixCell(mLSTMCell):
    """mLSTM's cell without the concatenation of queries, keys and values. With its gradient, that takes as long as all
    the rest."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **kwargs: Tensor) -> Tensor:
        if not applies(q):
            return super().forward(q, k, v, **kwargs)
        weight = torch.cat([self.igate.weight, self.fgate.weight])
        # q, k, v: (B, T, D); gates: (B, T, 2 * NH).
        q, k, v, gates = Gates.apply(q, k, v, weight, torch.cat([self.igate.bias, self.fgate.bias]))
        igate, fgate = gates.mT[..., None].chunk(2, 1)  # (B, NH, T, 1) each
        # (B, T, D) -> (B, NH, T, DH)
        q, k, v = (x.unflatten(2, (self.config.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        h = self.backend_fn(queries=q, keys=k, values=v, igate_preact=igate, fgate_preact=fgate)
        return self.outnorm(h).transpose(1, 2).flatten(2)


class ScalarCell(sLSTMCell_vanilla):
    """sLSTM's cell."""

    def _impl(self, training: bool, input: Tensor, state: Tensor) -> Tensor:
        if not applies(input):
            return super()._impl(training, input, state)
        return slstm(input + self._bias, state, self._recurrent_kernel)


class Projection(LinearHeadwiseExpand):
    """A block-diagonal projection."""

    def forward(self, x: Tensor) -> Tensor:
        if not applies(x) or self.bias is not None:
            return super().forward(x)
        return block_diagonal(x, self.weight)


class Convolution(CausalConv1d):
    """A causal depthwise convolution."""

    def forward(self, x: Tensor, conv_state: Tensor | None = None, return_last_state: bool = False) -> Tensor:
        if not applies(x) or conv_state is not None or return_last_state:
            return super().forward(x, conv_state, return_last_state)
        return causal_conv(x, self.conv.weight.squeeze(1), self.conv.bias)


class HeadNorm(MultiHeadLayerNorm):
    """Layer normalisation over the features of each head, with the features contiguous in memory."""

    def forward(self, input: Tensor) -> Tensor:
        if not applies(input):
            return super().forward(input)
        x = input.transpose(1, 2)  # (B, T, NH, DH)
        return (F.layer_norm(x, x.shape[3:], eps=self.eps) * self.weight_proxy.view(x.shape[2:])).transpose(1, 2)


CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    mLSTMCell: MatrixCell,
    sLSTMCell_vanilla: ScalarCell,
    LinearHeadwiseExpand: Projection,
    CausalConv1d: Convolution,
    MultiHeadLayerNorm: HeadNorm,
}
