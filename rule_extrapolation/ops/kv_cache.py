"""Keys and values of the tokens read so far, with room for those to come."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Room:
    """Memory behind caches, and how many of its positions are taken by the longest of them."""

    def __init__(self, memory: Tensor, taken: int):
        self.memory, self.taken = memory, taken


class Cache(NamedTuple):
    """Of one layer. Nothing that a cache shows ever changes, though caches that continue each other share memory."""

    keys: Tensor  # (B, num_heads, tokens so far, head_dim)
    values: Tensor
    room: Room | None = None


def extend(cache: Cache, k: Tensor, v: Tensor) -> Cache:
    """The cache with more tokens behind it, written into free room if there is some and no gradient is wanted."""
    seen, end = cache.keys.shape[2], cache.keys.shape[2] + k.shape[2]
    if not seen:
        return Cache(k, v)
    if torch.is_grad_enabled():
        return Cache(torch.cat([cache.keys, k], 2), torch.cat([cache.values, v], 2))
    room = cache.room
    # Positions behind this cache may be another continuation's: then it takes room of its own.
    if room is None or room.taken != seen or end > room.memory.shape[3]:
        batch, heads, _, dim = k.shape
        room = Room(k.new_empty(2, batch, heads, 2 * end, dim), end)
        room.memory[0, :, :, :seen], room.memory[1, :, :, :seen] = cache.keys, cache.values
    room.memory[0, :, :, seen:end], room.memory[1, :, :, seen:end] = k, v
    room.taken = end
    return Cache(*room.memory[:, :, :, :end], room)
