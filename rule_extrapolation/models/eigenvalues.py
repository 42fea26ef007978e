"""The range of the eigenvalues of a linear recurrence, a setting of several models."""

from __future__ import annotations

from collections.abc import Sequence

from rule_extrapolation.core.errors import ConfigError


def are_signed(eigenvalues: Sequence[int]) -> bool:
    """Whether the eigenvalues are in [-1, 1] instead of [0, 1].

    With eigenvalues in [0, 1] alone, a linear recurrence of finite precision cannot compute the parity of its input,
    whatever its number of layers; with negative ones, one layer can (Grazzi et al. 2024, arXiv 2411.12537).

    Raises:
        ConfigError: neither of the two ranges.
    """
    if list(eigenvalues) not in ([0, 1], [-1, 1]):
        raise ConfigError("eigenvalues", eigenvalues, "must be [0,1] or [-1,1]")
    return list(eigenvalues) == [-1, 1]
