"""One of the processes that are not the first of a run, which starts them: its config.yaml is the argument."""

from __future__ import annotations

import os
import sys
import threading
import time


def main() -> None:
    def end_with_parent() -> None:
        os.read(sys.stdin.fileno(), 1)  # what nobody writes to: it ends with whoever holds the other end
        time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    from omegaconf import OmegaConf

    from rule_extrapolation.experiment.run import run

    try:
        run(OmegaConf.load(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
