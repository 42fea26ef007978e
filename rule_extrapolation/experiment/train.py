"""Train from Python, as ``rule-extrapolation train`` does from the command line."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, open_dict

from rule_extrapolation.config.checks import is_distributed
from rule_extrapolation.config.composing import compose, register
from rule_extrapolation.config.messages import one_line
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.experiment.run import run
from rule_extrapolation.experiment.trained_run import TrainedRun, load_run
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.models.language_model import LanguageModel

register()

ONE_RUN_ONLY = {"seeds": "call train once for each seed", "sweep": "call train once for each run"}
"""Settings that make several runs on the command line, and what to do instead."""


def train(
    run_dir: str | Path,
    *overrides: str,
    grammar: Grammar | None = None,
    model: LanguageModel | None = None,
    quiet: bool = False,
) -> TrainedRun:
    """Train one run, test it and load its best checkpoint.

    >>> run = train("runs/first", "model=lstm", "grammar=L3", "trainer.max_steps=200")  # doctest: +SKIP
    >>> run.results["test"]["Test/OOD/rule_1_accuracy"]  # doctest: +SKIP
    >>> train("runs/mine", model=MyModel(num_tokens=5), grammar=MyLanguage(max_length=32))  # doctest: +SKIP

    Args:
        run_dir: the run's folder, which must not hold a run yet. It gets all that the command line writes, except for
            ``.hydra/``, which is Hydra's record of a command line.
        overrides: as on the command line.
        grammar: a language, in place of ``grammar=``; its max_length takes the place of ``data.max_length``.
        model: a model, in place of ``model=``; it is trained in place. ``load_run`` takes it as well.
        quiet: print only warnings, neither progress nor results.

    Raises:
        ValueError: overrides that make no configuration, in one line.
        ConfigError: an invalid setting, or a model with another number of tokens than the language.
    """
    try:
        cfg = compose(*overrides)
    except Exception as error:
        raise ValueError(one_line(error)) from error
    for key, fix in ONE_RUN_ONLY.items():
        if cfg[key] is not None:
            raise ConfigError(key, cfg[key], fix)
    cfg.run_dir = str(run_dir)
    if quiet:
        cfg.trainer.enable_progress_bar = False
    if (grammar or model) and is_distributed(cfg.trainer):
        fix = "a grammar or a model object trains in one process; leave it out"
        raise ConfigError("trainer.devices", cfg.trainer.get("devices"), fix)
    with open_dict(cfg):
        record_objects(cfg, grammar, model)
    run(cfg, quiet, grammar=grammar, model=model)
    return load_run(str(run_dir), grammar=grammar, model=model)


def record_objects(cfg: DictConfig, grammar: Grammar | None, model: LanguageModel | None) -> None:
    """Name in the configuration what is given as an object."""
    if grammar is not None:
        cfg.grammar = {"name": grammar.name, "_target_": path_of(grammar)}
        cfg.grammar.test_prompt_length = grammar.test_prompt_length
        cfg.data.max_length = grammar.max_length
    if model is not None:
        cfg.model = {"name": type(model).__name__, "_target_": path_of(model)}


def path_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
