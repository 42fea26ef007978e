"""Queries on batches of strings: where they end, where and how often a symbol occurs, how brackets match.

Strings are (B, T) tokens of any integer dtype, and *symbols* are strings whose rows end in PAD from their end on. Each
function has a form in plain torch, for any device, and a compiled kernel for batches on a CPU that are large enough.
Both give the same values and dtypes.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from rule_extrapolation.ops._kernels.launcher import is_worth_compiling
from rule_extrapolation.ops.strings import reference

__all__ = ["count", "first", "frame", "last", "matched", "nested", "truncate_at_eos"]


def implementation(strings: Tensor) -> ModuleType:
    """The module whose functions to use for these strings."""
    if strings.device.type == "cpu" and is_worth_compiling(strings.numel()):
        from rule_extrapolation.ops.strings import cpu_numba

        return cpu_numba
    return reference


def truncate_at_eos(strings: Tensor) -> tuple[Tensor, Tensor]:
    """Truncate strings before their first EOS.

    Args:
        strings: (B, T) tokens.

    Returns:
        (B, T) int8 symbols followed by PAD. They take an eighth of the memory of int64, and rules read them repeatedly.
        And (B,) bool: whether all tokens before the first EOS are symbols; if not, the row is all PAD.
    """
    return implementation(strings).truncate_at_eos(strings)


def frame(symbols: Tensor) -> Tensor:
    """(B, L) symbols followed by PAD -> (B, L + 2) int64: SOS, symbols, EOS, PAD..."""
    return implementation(symbols).frame(symbols)


def count(symbols: Tensor, symbol: int) -> Tensor:
    """(B, T) -> (B,) int32: how often the symbol occurs in each row."""
    return implementation(symbols).count(symbols, symbol)


def first(symbols: Tensor, symbol: int) -> Tensor:
    """(B, T) -> (B,) int32: the index of the symbol's first occurrence in each row, T if there is none."""
    return implementation(symbols).first(symbols, symbol)


def last(symbols: Tensor, symbol: int) -> Tensor:
    """(B, T) -> (B,) int32: the index of the symbol's last occurrence in each row, -1 if there is none."""
    return implementation(symbols).last(symbols, symbol)


def matched(symbols: Tensor, opening: int) -> tuple[Tensor, Tensor]:
    """Whether brackets of one kind match. Other symbols are ignored.

    Args:
        symbols: (B, T) symbols followed by PAD.
        opening: the token of the opening bracket; the closing bracket is the next token.

    Returns:
        (B,) bool: whether each closing bracket has an opening one before it. (B,) int32: the number of opening minus
        the number of closing brackets.
    """
    return implementation(symbols).matched(symbols, opening)


def nested(symbols: Tensor) -> tuple[Tensor, Tensor]:
    """Whether brackets of several kinds nest properly.

    Args:
        symbols: (B, T) symbols followed by PAD. Kind k opens with FIRST_SYMBOL + 2 k and closes with the next token.

    Returns:
        (B,) bool: whether each closing bracket is of the kind opened last. (B,) int32: how many brackets remain open,
        which is meaningful only where the first is true.
    """
    return implementation(symbols).nested(symbols)
