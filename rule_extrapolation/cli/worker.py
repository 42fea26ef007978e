"""A further process of a distributed run, started by the first one; its argument is the run's config.yaml."""

from __future__ import annotations

import sys

from omegaconf import OmegaConf

from rule_extrapolation.experiment.processes import end_with_standard_input


def main() -> None:
    end_with_standard_input()
    from rule_extrapolation.experiment.run import run

    try:
        run(OmegaConf.load(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
