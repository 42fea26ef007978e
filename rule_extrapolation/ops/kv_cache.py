"""Keys and values of the tokens read so far, with room for those to come."""

from __future__ import annotations

import torch
from torch import Tensor

Cache = tuple[Tensor, Tensor]
"""Keys and values of one layer, each (B, num_heads, tokens so far, head_dim). Nothing that a cache shows ever changes,
though caches that continue each other share memory."""


class Room:
    """Memory behind caches, and how many of its positions are taken by the longest of them."""

    def __init__(self, memory: Tensor, taken: int):
        self.memory, self.taken = memory, taken

    def follows(self, cache: Cache, end: int) -> bool:
        """Whether the positions behind a cache, up to ``end``, are here and free.

        A cache that was made of another one, its rows reordered say, is not here; and tensors of inference mode
        cannot be written to outside it.
        """
        is_here = all(getattr(tensor, "room", None) is self for tensor in cache)
        is_free = self.taken == cache[0].shape[2] and end <= self.memory.shape[3]
        return is_here and is_free and self.memory.is_inference() == torch.is_inference_mode_enabled()


def extend(cache: Cache, k: Tensor, v: Tensor) -> Cache:
    """The cache with more tokens behind it, written into free room if there is some and no gradient is wanted."""
    keys, values = cache
    seen, end = keys.shape[2], keys.shape[2] + k.shape[2]
    if not seen:
        return k, v
    if torch.is_grad_enabled():
        return torch.cat([keys, k], 2), torch.cat([values, v], 2)
    room = getattr(keys, "room", None)
    if room is None or not room.follows(cache, end):
        batch, heads, _, dim = k.shape
        room = Room(k.new_empty(2, batch, heads, 2 * end, dim), end)
        room.memory[0, :, :, :seen], room.memory[1, :, :, :seen] = keys, values
    room.memory[0, :, :, seen:end], room.memory[1, :, :, seen:end] = k, v
    room.taken = end
    keys, values = room.memory[:, :, :, :end]
    keys.room = values.room = room
    return keys, values
