"""A cache of attention keys and values that grows without copying the tokens read before."""

from __future__ import annotations

import torch
from torch import Tensor

Cache = tuple[Tensor, Tensor]
"""Keys and values of one layer, each (B, num_heads, tokens so far, head_dim). The contents of a cache never change,
although a cache and its extensions share memory."""


class Room:
    """Memory that a cache and its extensions share, (2, B, num_heads, capacity, head_dim).

    Args:
        taken: the number of positions that are in use, by the longest of the caches.
    """

    def __init__(self, memory: Tensor, taken: int):
        self.memory, self.taken = memory, taken

    def can_extend(self, cache: Cache, end: int) -> bool:
        """Whether the cache is in this memory and its next positions, up to ``end``, are free.

        A cache computed from another one, for instance by reordering its rows, has no memory to share. Tensors made in
        inference mode cannot be written to outside it.
        """
        is_here = all(getattr(tensor, "room", None) is self for tensor in cache)
        is_free = self.taken == cache[0].shape[2] and end <= self.memory.shape[3]
        return is_here and is_free and self.memory.is_inference() == torch.is_inference_mode_enabled()


def extend(cache: Cache, k: Tensor, v: Tensor) -> Cache:
    """The cache with more tokens at its end.

    They are written into the cache's memory if it has free positions, else everything is copied into memory for twice
    as many tokens. With gradients enabled, the tensors are concatenated.

    Args:
        k, v: (B, num_heads, T, head_dim) keys and values of T more tokens.
    """
    keys, values = cache
    seen, end = keys.shape[2], keys.shape[2] + k.shape[2]
    if not seen:
        return k, v
    if torch.is_grad_enabled():
        return torch.cat([keys, k], 2), torch.cat([values, v], 2)
    room = getattr(keys, "room", None)
    if room is None or not room.can_extend(cache, end):
        batch, heads, _, dim = k.shape
        room = Room(k.new_empty(2, batch, heads, 2 * end, dim), end)
        room.memory[0, :, :, :seen], room.memory[1, :, :, :seen] = keys, values
    room.memory[0, :, :, seen:end], room.memory[1, :, :, seen:end] = k, v
    room.taken = end
    keys, values = room.memory[:, :, :, :end]
    keys.room = values.room = room
    return keys, values
