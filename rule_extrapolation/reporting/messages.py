"""What the layers below report while they work, such as where W&B logs, printed on the console.

They do not print: they write to Python's logging, under the name of the package.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class Printing(logging.Handler):
    """Prints the message of each record, without time or level."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)


@contextmanager
def messages_printed(quiet: bool = False) -> Iterator[None]:
    """Print messages inside; with ``quiet``, only warnings."""
    logger = logging.getLogger("rule_extrapolation")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers = [Printing()]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False  # a program that trains by the Python API may print what reaches the root logger
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)
