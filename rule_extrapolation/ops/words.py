"""Many words at once: runs of letters, two letters in an even random order, and brackets drawn symbol by symbol.

Each random word has a key, drawn from torch's generator; what is drawn for its symbol t is a hash of the key and t
(splitmix64 of Steele, Lea and Flood, 2014). So the compiled kernels, on any number of threads, give the same words as
the torch forms. Of n choices each is drawn with a probability of 1/n, up to 2^-32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rule_extrapolation.core.tokens import FIRST_SYMBOL, PAD
from rule_extrapolation.ops import compiled
from rule_extrapolation.ops.splitmix import FIRST_FACTOR, SECOND_FACTOR, STEP
from rule_extrapolation.ops.strings import ROWS, takes_kernel


def draw_keys(num: int, generator: torch.Generator | None) -> Tensor:
    return torch.empty(num, dtype=torch.long).random_(generator=generator)


def random_bits(keys: Tensor, position: int | Tensor) -> Tensor:
    """32 bits, as int64, of each key at a position."""
    # int64 holds the same 64 bits as uint64, and products wrap alike; shifts to the right must bring in zeros.
    x = keys + (position + 1) * as_int64(STEP)
    x = (x ^ shifted_right(x, 30)) * as_int64(FIRST_FACTOR)
    x = (x ^ shifted_right(x, 27)) * as_int64(SECOND_FACTOR)
    return shifted_right(x ^ shifted_right(x, 31), 32)


def as_int64(number: int) -> Tensor:
    return torch.tensor(number - 2**64 if number >= 2**63 else number)


def shifted_right(x: Tensor, by: int) -> Tensor:
    return (x >> by) & (2 ** (64 - by) - 1)


def runs(letters: list[int], counts: Tensor, width: int) -> Tensor:
    """Words such as a^2 b^3 from how often each letter comes in its turn.

    Args:
        letters: R letters, in order.
        counts: (N, R); each row sums to ``width`` at most.

    Returns:
        (N, width) int8 symbols followed by PAD.

    Raises:
        ValueError: words longer than ``width``, or of a negative length.
    """
    ends = counts.cumsum(1)
    check_fits(counts, width)
    check_fits(ends, width)
    if takes_kernel(len(counts), width):
        words = torch.empty(len(counts), width, dtype=torch.int8)
        launch("runs", len(counts), (width, len(letters)), (torch.tensor(letters), ends, words))
        return words
    words = torch.full((len(counts), width), PAD, dtype=torch.int8)
    for letter, end in zip(reversed(letters), reversed(ends.unbind(1))):
        words.masked_fill_(torch.arange(width) < end[:, None], letter)
    return words


def shuffled(letters: tuple[int, int], num_first: Tensor, lengths: Tensor, width: int, keys: Tensor) -> Tensor:
    """Words of ``num_first`` (N,) of the first of two letters, the other ones up to ``lengths`` (N,), in an even order.

    A symbol is the first letter with the probability of drawing it from what is left to be placed: selection sampling,
    algorithm S of Knuth's volume 2, section 3.4.2.

    Returns:
        (N, width) int8 symbols followed by PAD.

    Raises:
        ValueError: words longer than ``width``, or of a negative length.
    """
    num = len(keys)
    first, second = letters
    check_fits(lengths, width)
    if takes_kernel(num, width):
        words = torch.empty(num, width, dtype=torch.int8)
        tensors = tuple(tensor.contiguous() for tensor in (num_first.long(), lengths.long(), keys))
        launch("shuffled", num, (width, first, second), (*tensors, words))
        return words
    words = torch.full((width, num), PAD, dtype=torch.int8)
    first_left = num_first.clone()
    for t in range(width):
        left = (lengths - t).clamp_min(0)
        takes_first = (random_bits(keys, t) * left >> 32) < first_left
        first_left -= takes_first.long()
        words[t] = torch.where(takes_first, first, second).masked_fill(left == 0, PAD)
    return words.T.contiguous()


def brackets(targets: Tensor, kinds: int, width: int, nest: bool, keys: Tensor) -> Tensor:
    """Bracket words, one for each target length: see ``grammars.dyck.sample_brackets``.

    Args:
        targets: (N,) even lengths, ``width`` at most.

    Returns:
        (N, width) int8 symbols followed by PAD.

    Raises:
        ValueError: words longer than ``width``, or of a negative length.
    """
    num = len(targets)
    check_fits(targets, width)
    if takes_kernel(num, width):
        words = torch.empty(num, width, dtype=torch.int8)
        # What each task remembers: the kinds that are open, in order, or how many there are of each.
        memory = torch.empty(-(-num // ROWS), max(width, kinds) + 1, dtype=torch.int32)
        launch(
            "brackets",
            num,
            (width, kinds, nest, memory.shape[1]),
            (targets.long().contiguous(), keys.contiguous(), words, memory),
        )
        return words
    words = torch.full((num, width), PAD, dtype=torch.int8)
    # Of the words that go on alone: where they belong, and what is open in them.
    row = torch.arange(num)
    open_ = torch.zeros(num, kinds, dtype=torch.long)
    stack = torch.zeros(num, width // 2 + 1, dtype=torch.long)  # kinds; stack[0] is the floor
    for position in range(width):
        total = open_.sum(1)
        going_on = position < targets
        if nest and position > 0:
            going_on &= total > 0
        if not going_on.all():
            of_words = (row, open_, stack, targets, total, keys)
            row, open_, stack, targets, total, keys = (x[going_on] for x in of_words)
        may_open = (position + total < targets)[:, None].expand(-1, kinds)
        may_close = open_ > 0
        index = torch.arange(len(row))
        if nest:
            may_close &= torch.nn.functional.one_hot(stack[index, total], kinds).bool()
        # Columns: each kind's opening bracket, then each kind's closing one.
        choices = torch.cat([may_open, may_close], 1)
        pick = random_bits(keys, position)[:, None] * choices.sum(1, keepdim=True) >> 32
        choice = (choices.cumsum(1) > pick).long().argmax(1)
        kind, closes = choice % kinds, choice >= kinds
        words[row, position] = (FIRST_SYMBOL + 2 * kind + closes.long()).to(torch.int8)
        open_[index, kind] += torch.where(closes, -1, 1)
        if nest:
            top = total + torch.where(closes, -1, 1)
            stack[index, top] = torch.where(closes, stack[index, top], kind)
    return words


def check_fits(lengths: Tensor, width: int) -> None:
    if lengths.numel() and not 0 <= lengths.min() <= lengths.max() <= width:
        raise ValueError(f"lengths must be from 0 to {width}, not {lengths.min()} to {lengths.max()}")


def launch(name: str, num: int, sizes: tuple[int, ...], tensors: tuple[Tensor, ...]) -> None:
    from rule_extrapolation.ops import words_numba

    kernel = getattr(words_numba, name)()
    compiled.launch(kernel, -(-num // ROWS), (num, ROWS, *sizes), tensors, num * sizes[0])
