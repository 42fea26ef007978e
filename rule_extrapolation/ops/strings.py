"""What is asked of a batch of strings: where they end, how often and where a symbol occurs, how brackets pair up.

Each has a torch form, for any device, and a compiled kernel, for a CPU and batches that are worth compiling it for.
Symbols come as (batch, length) tokens of any integer dtype, followed by PAD.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL, PAD, SOS
from rule_extrapolation.ops import compiled

WORTH_COMPILING = 2**18
"""Numbers. On fewer, the torch forms take some milliseconds, and a kernel takes half a second to compile."""
ROWS = 64
"""Of a task."""


def takes_kernel(*size: int) -> bool:
    """Whether a kernel is what to use for so many numbers, on a CPU."""
    return torch.Size(size).numel() >= WORTH_COMPILING and compiled.available()


def launch(name: str, batch: int, sizes: tuple[int, ...], tensors: tuple[Tensor, ...], work: int) -> None:
    from rule_extrapolation.ops import strings_numba

    tasks = -(-batch // ROWS)
    compiled.launch(getattr(strings_numba, name)(), tasks, (batch, ROWS, *sizes), tensors, work)


def cut_at_eos(strings: Tensor) -> tuple[Tensor, Tensor]:
    """The symbols before the first EOS.

    Args:
        strings: (B, T) tokens.

    Returns:
        (B, T) int8 symbols followed by PAD: an eighth of the memory to go through, as often as rules do. And (B,) bool:
        whether only symbols stand before the first EOS; where not, there is nothing but PAD.
    """
    if not uses_kernel(strings):
        return cut_at_eos_in_torch(strings)
    batch, length = strings.shape
    strings = strings.long()
    if strings.stride(1) != 1:
        strings = strings.contiguous()
    symbols = strings.new_empty(batch, length, dtype=torch.int8)
    is_string = strings.new_empty(batch, dtype=torch.bool)
    launch("cut_at_eos", batch, (length, strings.stride(0)), (strings, symbols, is_string), symbols.numel())
    return symbols, is_string


def cut_at_eos_in_torch(strings: Tensor) -> tuple[Tensor, Tensor]:
    strings = strings.to(torch.int8)
    end = first_true(strings < FIRST_SYMBOL)[:, None]
    # Behind the last column stands one more EOS.
    is_string = torch.nn.functional.pad(strings, (0, 1), value=EOS).gather(1, end) == EOS
    ended = torch.arange(strings.shape[1], device=strings.device) >= end
    return strings.masked_fill(ended | ~is_string, PAD), is_string[:, 0]


def frame(symbols: Tensor) -> Tensor:
    """(B, L) symbols followed by PAD -> (B, L + 2) int64: SOS, symbols, EOS, PAD... ."""
    batch, length = symbols.shape
    if uses_kernel(symbols):
        rows = symbols.new_empty(batch, length + 2, dtype=torch.long)
        launch("frame", batch, (length,), (symbols.to(torch.int8).contiguous(), rows), rows.numel())
        return rows
    rows = symbols.new_full((batch, length + 2), PAD, dtype=torch.long)
    rows[:, 0] = SOS
    rows[:, 1:-1] = symbols
    return rows.scatter_(1, 1 + first(symbols, PAD).long()[:, None], EOS)


def first_true(found: Tensor) -> Tensor:
    """(B, T) bool -> (B,): where the first true one is, T if there is none."""
    # Behind the last column stands one more, which is always true.
    return torch.nn.functional.pad(found.view(torch.uint8), (0, 1), value=1).argmax(1)


def count(symbols: Tensor, symbol: int) -> Tensor:
    """(B, T) -> (B,): how often the symbol occurs."""
    if uses_kernel(symbols):
        return number_of_each("count", symbols, symbol)
    return (symbols == symbol).view(torch.uint8).sum(1, dtype=torch.int32)


def first(symbols: Tensor, symbol: int) -> Tensor:
    """(B, T) -> (B,): where the symbol first occurs, T if it does not."""
    if uses_kernel(symbols):
        return number_of_each("first", symbols, symbol)
    return first_true(symbols == symbol).int()


def last(symbols: Tensor, symbol: int) -> Tensor:
    """(B, T) -> (B,): where the symbol last occurs, -1 if it does not."""
    if uses_kernel(symbols):
        return number_of_each("last", symbols, symbol)
    return symbols.shape[1] - 1 - first_true((symbols == symbol).flip(1)).int()


def matched(symbols: Tensor, opening: int) -> tuple[Tensor, Tensor]:
    """Of brackets of one kind, which open with that token and close with the next one; other kinds are ignored.

    Returns:
        Two (B,): whether each that closes has one open before it (bool), and how many more open than close.
    """
    if uses_kernel(symbols):
        return verdict_and_number("matched", symbols, (opening,), ())
    opens, closes = (symbols == opening + side for side in (0, 1))
    depth = (opens.view(torch.int8) - closes.view(torch.int8)).cumsum(1, dtype=torch.int32)
    return (depth >= 0).all(1), torch.nn.functional.pad(depth, (1, 0))[:, -1]


def nested(symbols: Tensor) -> tuple[Tensor, Tensor]:
    """Of brackets of any number of kinds, each of which opens with FIRST_SYMBOL plus an even number.

    Returns:
        Two (B,): whether each that closes is of the kind opened last (bool), and how many remain open; the latter means
        something only where the former holds.
    """
    batch, length = symbols.shape
    if uses_kernel(symbols):
        stacks = torch.empty(-(-batch // ROWS), length + 2, dtype=torch.int8)
        return verdict_and_number("nested", symbols, (), (stacks,))
    # Positions first: each step then reads and writes rows. No bracket is 0, which stack[0] is: the floor.
    stack = symbols.new_zeros(length + 1, batch)
    top = torch.zeros(1, batch, dtype=torch.long, device=symbols.device)
    proper = torch.ones(1, batch, dtype=torch.bool, device=symbols.device)
    is_symbol = symbols >= FIRST_SYMBOL
    opens = is_symbol & ((symbols - FIRST_SYMBOL) % 2 == 0)
    by_position = (x.T[:, None].contiguous() for x in (symbols, opens, is_symbol & ~opens))
    for symbol, opening, closing in zip(*by_position):
        proper &= ~closing | (stack.gather(0, top) == symbol - 1)
        top = (top + opening.long() - closing.long()).clamp_(min=0)
        stack.scatter_(0, top, torch.where(opening, symbol, stack.gather(0, top)))
    return proper[0], top[0].int()


def uses_kernel(symbols: Tensor) -> bool:
    return symbols.device.type == "cpu" and takes_kernel(*symbols.shape)


def number_of_each(name: str, symbols: Tensor, symbol: int) -> Tensor:
    symbols = symbols.to(torch.int8).contiguous()
    numbers = symbols.new_empty(len(symbols), dtype=torch.int32)
    launch(name, len(symbols), (symbols.shape[1], symbol), (symbols, numbers), symbols.numel())
    return numbers


def verdict_and_number(
    name: str, symbols: Tensor, sizes: tuple[int, ...], scratch: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    symbols = symbols.to(torch.int8).contiguous()
    verdicts, numbers = (symbols.new_empty(len(symbols), dtype=dtype) for dtype in (torch.bool, torch.int32))
    tensors = (symbols, verdicts, numbers, *scratch)
    launch(name, len(symbols), (symbols.shape[1], *sizes), tensors, symbols.numel())
    return verdicts, numbers
