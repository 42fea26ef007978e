"""Train a model and show which rules its completions keep: rule-extrapolation train"""

from __future__ import annotations

import os
import sys
from typing import Annotated, get_origin, get_type_hints

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rule_extrapolation.cli.pipes import ends_with_pipe, outlive_pipes
from rule_extrapolation.cli.preflight import HELD, fail
from rule_extrapolation.config.checks import Settings
from rule_extrapolation.config.composing import CONF_DIR, as_hydra_reads, clashes, compose, groups, models, register
from rule_extrapolation.config.messages import one_line
from rule_extrapolation.core.errors import ConfigError, RunsFailed, one_of
from rule_extrapolation.core.files import write_failure
from rule_extrapolation.core.threads import limit_threads, threads_per_job
from rule_extrapolation.experiment import sweep

OPTIONS = """
  -m              a sweep: one run for each combination of values that are separated by commas
  --list          list the languages and the models
  --cfg job       print the configuration instead of training
  hydra.run.dir=  the run's folder; default: a new one in runs/. hydra.sweep.dir= is that of a sweep"""

FLAGS = ("--list", "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m")
FLAGS += ("--shell-completion", "-sc")
FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn")
FLAGS_WITH_VALUE += ("--config-dir", "-cd", "--info", "-i")
CHOICES = dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all"))
CHOICES |= dict.fromkeys(("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"))
"""The options of ``--list`` and of Hydra, except --experimental-rerun, which would run any code of a pickled file."""

register()


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def train(cfg: DictConfig) -> float | None:
    outlive_pipes()  # also in the processes of launchers
    limit_threads(cfg.threads or threads_per_job(HydraConfig.get().launcher))
    try:
        return work(cfg) if cfg.sweep is None else sweep.run_job(cfg, work)
    except Exception as error:
        if full := write_failure(error, cfg.run_dir):
            # Hydra prints the traceback of an exception, but not that of an exit.
            fail(f"{full}; the run folder keeps what was written before", status=1)
        error.add_note("The run folder keeps what was written before the error.")
        error.during_run = True
        raise


def work(cfg: DictConfig) -> None:
    from rule_extrapolation.experiment.run import run
    from rule_extrapolation.experiment.seeds import run_seeds

    run_seeds(cfg) if cfg.seeds else run(cfg)


def check_words(words: list[str]) -> None:
    """Exit with one line if a word of the command line is neither an option nor ``key=value``."""
    for before, word, after in zip(["", *words], words, [*words[1:], ""]):
        key, equals, value = word.partition("=")
        if key in FLAGS_WITH_VALUE:
            check_flag(key, value if equals else after)
        if before in FLAGS_WITH_VALUE or key in (*FLAGS, *FLAGS_WITH_VALUE) or word.startswith("~"):
            continue
        if not key.lstrip("+") or value.startswith("="):
            fail(f"{word}: settings are key=value")
        if word.startswith("-"):
            setting = f"{key.lstrip('-')}={value or ('' if '=' in after else after) or '...'}"
            fail(f"{word}: settings are key=value; did you mean {setting}?")
        if not equals:
            meant = [f"{group}={word}" for group, choices in groups().items() if word in choices]
            fail(f"{word}: settings are key=value" + (f"; did you mean {' or '.join(meant)}?" if meant else ""))


def check_flag(flag: str, value: str) -> None:
    """Exit with one line if a flag of Hydra's has no value, or one that it does not know."""
    choices = CHOICES.get(flag)
    if not value or value.startswith("-"):
        fail(f"{flag}: needs a value" + (f", one of {', '.join(choices)}" if choices else ""))
    if choices and value not in choices:
        fail(f"{flag}={value}: {one_of(value, choices)}")


def print_help(arguments: list[str]) -> None:
    """Print what Hydra's --help prints, in a third of the time: Hydra copies all configurations for each group."""
    try:
        cfg = compose(*(argument for argument in arguments if not argument.startswith("-")), with_hydra=True)
    except Exception as error:
        fail(one_line(error))
    print(cfg.hydra.help.header, OPTIONS, "\nSettings of a run:", sep="\n")
    for key, hint in get_type_hints(Settings, include_extras=True).items():
        if get_origin(hint) is Annotated:
            print(f"  {key + '=':16}{hint.__metadata__[0]}")
    print("\nGroups, to be chosen from by group=choice:", sep="\n")
    for group, choices in groups().items():
        print(f"  {group}: {', '.join(choices)}")
    settings = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    print("\nSettings, each to be set by key=value:", OmegaConf.to_yaml(settings), cfg.hydra.help.footer, sep="\n")


@ends_with_pipe
def main() -> None:
    check_words(sys.argv[1:])
    try:
        sys.argv[1:] = as_hydra_reads(sys.argv[1:])
    except ConfigError as error:
        fail(str(error))
    for clash in clashes():
        print(f"warning: {clash}", file=sys.stderr)
    if "--list" in sys.argv[1:]:
        from rule_extrapolation.reporting.console import plain_console
        from rule_extrapolation.reporting.terminal import print_languages, print_models

        print_languages(plain_console())
        print_models(plain_console(), models())
        return
    if {"--help", "-h"} & set(sys.argv[1:]):
        return print_help(sys.argv[1:])
    # Hydra would print its own errors over several lines and exit with 1.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Let a waiting thread sleep soon instead of spinning, which slows small models down when another program needs a
    # core: on 2 cores, 200 steps of the default run took 6.7 s instead of 14 s beside a busy loop, and 3.7 s instead of
    # 3.1 s alone.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    sweep.current = None
    outlive_pipes()
    try:
        with HELD:
            train()
    except KeyboardInterrupt:
        if sweep.current:
            sweep.current.close()
        sys.exit(130)
    except RunsFailed as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        # Before a run has begun, the cause of any error is the command line.
        if getattr(error, "during_run", False) and not isinstance(error, ConfigError):
            raise
        if full := write_failure(error, "the run folder"):
            fail(str(full), status=1)
        fail(one_line(error))
    if sweep.current and sweep.current.close():
        sys.exit(1)


if __name__ == "__main__":
    main()
