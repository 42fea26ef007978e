"""Train one run, evaluate it and print which rules its completions keep: python -m rule_extrapolation.runner"""

from __future__ import annotations

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rule_extrapolation.config import CONF_DIR, one_line, register
from rule_extrapolation.errors import ConfigError
from rule_extrapolation.preflight import fail

register()


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def train(cfg: DictConfig) -> None:
    from rule_extrapolation.experiment import run

    run(cfg)


def main() -> None:
    if "--list" in sys.argv[1:]:
        from rich.console import Console

        from rule_extrapolation.reporting.terminal import print_languages

        return print_languages(Console())
    # Hydra would print its own errors over several lines and exit with 1.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Small models spend their time between threads: where another program wants a core, spinning costs many times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        train()
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        fail(one_line(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
