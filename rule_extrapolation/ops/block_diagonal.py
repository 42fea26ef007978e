"""Multiplication by a block-diagonal matrix whose many blocks are too small to be multiplied one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDTH = 64
"""Neighbouring blocks are merged into dense matrices of up to this width. Multiplying by their zeros costs less than
multiplying by narrow blocks."""


def block_diagonal(x: Tensor, weight: Tensor) -> Tensor:
    """Split the last dimension of x into H parts and multiply each by a matrix of its own. Differentiable once.

    Args:
        x: (..., H * I)
        weight: (H, O, I), the blocks.

    Returns:
        (..., H * O): part h of the last dimension is weight[h] times part h of x.
    """
    return BlockDiagonal.apply(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)


class BlockDiagonal(torch.autograd.Function):
    """From (N, H * I) and (H, O, I) to (N, H * O)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return grouped_product(x, merged(weight).mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        groups = merged(weight)
        # The gradient of each merged matrix, of which only the blocks on the diagonal are wanted.
        d_groups = pieces(dy, len(groups)).mT @ pieces(x, len(groups))
        blocks, out_width, in_width = weight.shape
        d_groups = d_groups.view(len(groups), blocks // len(groups), out_width, -1, in_width)
        d_weight = d_groups.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(weight.shape)
        return grouped_product(dy, groups), d_weight


def merged(weight: Tensor) -> Tensor:
    """(H, O, I) -> (G, H / G * O, H / G * I): G block-diagonal matrices, each of H / G neighbouring blocks."""
    blocks, out_width, in_width = weight.shape
    size = max(n for n in range(1, blocks + 1) if blocks % n == 0 and (n == 1 or n * in_width <= WIDTH))
    groups = weight.new_zeros(blocks // size, size, out_width, size, in_width)
    groups.diagonal(dim1=1, dim2=3).copy_(weight.view(-1, size, out_width, in_width).permute(0, 2, 3, 1))
    return groups.view(-1, size * out_width, size * in_width)


def grouped_product(x: Tensor, groups: Tensor) -> Tensor:
    """(N, G * I) and (G, I, O) -> (N, G * O)"""
    y = x.new_empty(len(x), len(groups) * groups.shape[2])
    for piece, group, result in zip(pieces(x, len(groups)), groups, pieces(y, len(groups))):
        torch.mm(piece, group, out=result)
    return y


def pieces(x: Tensor, number: int) -> Tensor:
    """(N, G * I) -> (G, N, I), a view."""
    return x.view(len(x), number, -1).transpose(0, 1)
