"""Commands whose output is piped, to head for example."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable


def ends_with_pipe(main: Callable[[], None]) -> Callable[[], None]:
    """A command's main that ends with exit status 1 and no traceback once nothing reads its output any more."""

    @functools.wraps(main)
    def piped() -> None:
        try:
            main()
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes stdout once more as it exits, which would raise again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)

    return piped
