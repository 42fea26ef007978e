"""Read back the run-*.wandb file of an offline W&B run, for which wandb itself has no reader in Python."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE_HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
BLOCK = 32 * 1024
RECORD_HEADER = struct.Struct("<IHB")  # crc, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What a run has logged; `info` holds its id, name, project, entity, group, tags and exit code."""

    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


def read_run(folder: Path | str) -> OfflineRun:
    """Read the run in an offline-run-* folder. Raises ValueError if the file is not whole."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = Path(folder).glob("run-*.wandb")
    run = OfflineRun()
    for data in _records(path.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            made = record.run
            run.info |= {"id": made.run_id, "name": made.display_name, "project": made.project, "entity": made.entity}
            run.info |= {"group": made.run_group, "tags": list(made.tags)}
            _update(run.config, made.config.update)
        elif kind == "config":
            _update(run.config, record.config.update)
        elif kind == "history":
            run.history.append(_update({}, record.history.item))
        elif kind == "summary":
            _update(run.summary, record.summary.update)
        elif kind == "exit":
            run.info["exit_code"] = record.exit.exit_code
    return run


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, put together from their parts in its blocks."""
    if not content.startswith(FILE_HEADER):
        raise ValueError("not a W&B file of this version")
    position, parts = len(FILE_HEADER), []
    while position < len(content):
        left = BLOCK - position % BLOCK
        if left < RECORD_HEADER.size:  # padding
            position += left
            continue
        crc, length, kind = RECORD_HEADER.unpack_from(content, position)
        position += RECORD_HEADER.size
        part = content[position : position + length]
        position += length
        if zlib.crc32(part, zlib.crc32(bytes([kind]))) != crc or (kind in (FULL, FIRST)) == bool(parts):
            raise ValueError(f"damaged before byte {position}")
        parts.append(part)
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


def _update(values: dict[str, Any], items: Any) -> dict[str, Any]:
    for item in items:
        *path, last = list(item.nested_key) or [item.key]
        inner = values
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
    return values
