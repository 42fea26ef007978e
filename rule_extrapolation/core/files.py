"""Files that are written whole or not at all, also when the disk is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rule_extrapolation.core.errors import WriteFailed

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system says when a disk, a quota or a file can take no more, or a disk is there to be read only."""


def expand_home(text: str) -> str:
    """The text with a ~/ in front expanded, which a shell leaves as it is in key=~/path."""
    return os.path.expanduser(text) if text.startswith("~/") else text


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn an OSError inside into a WriteFailed that names the file, which the error of a write does not."""
    try:
        yield
    except OSError as error:
        raise WriteFailed(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to, which takes its place at the end. Nothing is left of it otherwise.

    Raises:
        WriteFailed: the system cannot write it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_failure(error: BaseException, place: Path | str) -> WriteFailed | None:
    """The error as a WriteFailed if the system could not write a file, or None.

    Args:
        place: what to name if the error does not say which file it was, as those of libraries may not.
    """
    if isinstance(error, WriteFailed):
        return error
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return WriteFailed(f"{error.filename or place} cannot be written: {error.strerror}")
    return None
