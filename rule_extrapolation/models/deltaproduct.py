from __future__ import annotations

from collections.abc import Sequence

from rule_extrapolation.models.deltanet import DeltaNet


class DeltaProduct(DeltaNet):
    """DeltaProduct (Siems et al. 2025, arXiv 2502.10297, section 3): several writes of the delta rule for each token.

    A token's transition is the product of ``num_writes`` generalised Householder matrices I - b k k^T. With
    eigenvalues=[-1,1], one layer of n writes tracks permutations of n + 1 things.

    The other arguments and errors are DeltaNet's.

    Args:
        num_writes: Householder matrices for each token.
    """

    def __init__(
        self,
        num_tokens: int,
        d_model: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        d_conv: int = 4,
        mlp_ratio: int = 2,
        num_writes: int = 2,
        eigenvalues: Sequence[int] = (-1, 1),
    ):
        super().__init__(num_tokens, d_model, num_layers, num_heads, d_conv, mlp_ratio, eigenvalues, num_writes)
