"""Train from Python, as ``rule-extrapolation train`` does from the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, open_dict

from rule_extrapolation.config.building import MODEL_CONTEXT
from rule_extrapolation.config.checks import is_distributed
from rule_extrapolation.config.composing import compose, register
from rule_extrapolation.config.messages import one_line
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.experiment.run import run
from rule_extrapolation.experiment.trained_run import TrainedRun, check_objects, import_path, load_run
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.models.language_model import LanguageModel

register()

ONE_RUN_ONLY = {"seeds": "call train once for each seed", "sweep": "call train once for each run"}
"""Settings that make several runs on the command line, and what to do instead."""
GRAMMAR_KEYS = ("grammar", "data.max_length")
MODEL_KEYS = ("model", "sizes", "depth", "width")
"""Settings, each with all below it, that an object takes the place of."""


def train(
    run_dir: str | Path,
    *overrides: str,
    grammar: Grammar | str | None = None,
    model: LanguageModel | str | None = None,
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
        grammar: a language, in place of ``grammar=``; its max_length takes the place of ``data.max_length``. Or a name.
        model: a model, in place of ``model=``; it is trained in place. ``load_run`` takes it as well. Or a name.
        quiet: print only warnings, neither progress nor results.

    Raises:
        ConfigError: overrides that make no configuration, an invalid setting, or a model with another number of tokens
            than the language.
    """
    check_call(str(run_dir), overrides, grammar, model)
    names = [f"{key}={value}" for key, value in (("grammar", grammar), ("model", model)) if isinstance(value, str)]
    grammar, model = (None if isinstance(value, str) else value for value in (grammar, model))
    check_objects(grammar, model)
    cfg = composed(*names, *overrides)
    if grammar is not None and cfg.grammar._target_ is None:
        raise ConfigError("grammar", grammar.name, "data=text trains on a text, which has no language; leave one out")
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
    if model is not None:
        model.train()  # an earlier call has left it in evaluation mode
    run(cfg, quiet, grammar=grammar, model=model)
    return load_run(str(run_dir), grammar=grammar, model=model, trust_run=True)  # the caller's own


def check_call(
    run_dir: str, overrides: tuple[str, ...], grammar: Grammar | str | None, model: LanguageModel | str | None
) -> None:
    """Raise a ConfigError for an argument of ``train`` that another one would override."""
    if "=" in run_dir:
        raise ConfigError("run_dir", run_dir, "is a setting; the first argument is the run's folder")
    taken = {"run_dir": "the first argument is the run's folder", "hydra": "is for the command line; leave it out"}
    for name, value, keys in (("grammar", grammar, GRAMMAR_KEYS), ("model", model, MODEL_KEYS)):
        if value is not None and not isinstance(value, str):
            taken |= dict.fromkeys(keys, f"the {name} is given as an object; leave one of them out")
    named = {name for name, value in (("grammar", grammar), ("model", model)) if isinstance(value, str)}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key.startswith("-"):
            raise ConfigError("overrides", override, "train takes key=value only, and makes one run")
        if key in named:
            raise ConfigError(key, value, f"{key}= is given twice; give it once")
        for group, fix in taken.items():
            if key == group or key.startswith((f"{group}.", f"{group}/")):
                raise ConfigError(key, value, fix)


def composed(*overrides: str) -> DictConfig:
    """The configuration that the overrides make.

    Raises:
        ConfigError: they make none.
    """
    try:
        return compose(*overrides)
    except Exception as error:
        line = one_line(error)
        setting = re.fullmatch(r"([^\s=]+)=(\S*): (.*)", line)
        raise ConfigError(*(setting.groups() if setting else ("overrides", " ".join(overrides), line))) from error


def record_objects(cfg: DictConfig, grammar: Grammar | None, model: LanguageModel | None) -> None:
    """Describe in the configuration what is given as an object."""
    if grammar is not None:
        cfg.grammar = {"name": grammar.name, **describe(grammar, given=["max_length"])}
        cfg.data.max_length = grammar.max_length
    if model is not None:
        cfg.model = {"name": type(model).__name__, **describe(model, given=MODEL_CONTEXT)}


def describe(value: Grammar | LanguageModel, given: Iterable[str]) -> dict[str, Any]:
    """The class and the arguments of its constructor, each read from the attribute of the same name.

    An argument that no attribute tells, or whose value YAML cannot hold, is described as missing, so that ``load_run``
    asks for the object instead of building another one.

    Args:
        given: arguments that the program passes itself.
    """
    described = {"_target_": import_path(value)}
    for name, parameter in inspect.signature(type(value)).parameters.items():
        if name not in given and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            argument = getattr(value, name, MISSING)
            described[name] = argument if is_plain(argument) else MISSING
    return described


def is_plain(value: Any) -> bool:
    """Whether YAML holds the value as it is."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)
