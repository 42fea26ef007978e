"""Commands whose output is piped, to head for example."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable

from rule_extrapolation.core.files import write_failure


def drop_output(descriptor: int) -> None:
    """Drop all further output. Python flushes stdout once more as it exits, which would otherwise raise again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def ends_with_pipe(main: Callable[[], None]) -> Callable[[], None]:
    """A command's main that ends with exit status 1 and no traceback once nothing reads its output any more."""

    @functools.wraps(main)
    def piped() -> None:
        try:
            main()
            sys.stdout.flush()
        except BrokenPipeError:
            drop_output(sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            full = write_failure(error, "standard output")
            if full is None or error.filename is not None:
                raise
            drop_output(sys.stdout.fileno())
            sys.exit(f"error: {full}")

    return piped


class OutlivingFile(io.FileIO):
    """A file that drops what is written to it once it is a pipe that nothing reads any more."""

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            drop_output(self.fileno())
            return len(data)


def outlive_pipes() -> None:
    """Let this process continue without output when nothing reads stdout or stderr any more, since training that has
    begun is worth finishing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue  # done already, or captured by a test or a notebook
        stream.flush()
        file = OutlivingFile(stream.fileno(), "w", closefd=False)
        unbuffered = isinstance(stream.buffer, io.RawIOBase)  # python -u
        new = io.TextIOWrapper(
            file if unbuffered else io.BufferedWriter(file),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, new)
