"""From a configuration's groups to objects.

Each group names a class or a function by its ``_target_``. Its other keys are checked against the signature before any
work: an unknown key or a value of the wrong type is a ConfigError, and so is a value that the constructor rejects.
"""

from __future__ import annotations

import functools
import inspect
import pydoc
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rule_extrapolation.config.checks import NO_ARGUMENTS, READ_BY_PROGRAM, check_arguments, check_settings
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.task import Task

MODEL_CONTEXT = ("num_tokens", "process", "language", "accelerator")
"""The arguments of a model that the program passes, as far as the class takes them."""


def build(cfg: DictConfig, group: str, **runtime: Any) -> Any:
    """Build what ``cfg[group]`` describes.

    Args:
        runtime: further arguments, which the program passes.

    Raises:
        ConfigError: naming the key as one writes it on the command line.
    """
    make = resolve_factory(cfg, group, given=runtime)
    with config_error_context(cfg, group):
        return make(**runtime)


def build_data(cfg: DictConfig, grammar: Task | None = None) -> Any:
    """The datamodule, with the language that ``cfg.grammar`` names, if it names one (text has grammar=none).

    Args:
        grammar: a language that has been built already, instead.

    Raises:
        ConfigError: naming the key as one writes it on the command line.
    """
    if grammar is not None:
        return build(cfg, "data", grammar=lambda max_length: grammar)
    if cfg.grammar._target_ is None:
        return build(cfg, "data")
    return build(cfg, "data", grammar=resolve_factory(cfg, "grammar", given=["max_length"]))


def build_model(cfg: DictConfig, task: Task) -> Any:
    """The model for a task's tokens, on torch's default device.

    Raises:
        ConfigError: naming the key as one writes it on the command line.
    """
    from rule_extrapolation.models.language_model import LanguageModel

    accelerator = cfg.trainer.get("accelerator", "auto")
    context = dict(zip(MODEL_CONTEXT, (task.num_tokens, task.process, task.name, accelerator)))
    model = build_with_context(cfg, "model", **context)
    check_made(cfg, "model", model, LanguageModel)
    return model


def check_made(cfg: DictConfig, group: str, made: Any, wanted: type) -> None:
    """Raise a ConfigError if what a group's ``_target_`` made is of another class."""
    if not isinstance(made, wanted):
        target = OmegaConf.select(cfg, f"{group}._target_")
        raise ConfigError(f"{group}._target_", target, f"makes no {wanted.__name__}, but {type(made).__name__}")


def build_with_context(cfg: DictConfig, group: str, **offered: Any) -> Any:
    """``build`` with those of the offered arguments that the class takes."""
    takes = inspect.signature(resolve_factory(cfg, group, given=offered)).parameters
    return build(cfg, group, **{name: value for name, value in offered.items() if name in takes})


def build_optional(cfg: DictConfig, group: str, **offered: Any) -> Any:
    """``build_with_context``, or None where the group's choice is ``_target_: null``."""
    return build_with_context(cfg, group, **offered) if has_target(cfg, group) else None


def has_target(cfg: DictConfig, group: str) -> bool:
    """Whether a group's choice builds anything. One with ``_target_: null`` does not, and has no settings.

    Raises:
        ConfigError: a setting of a choice that has none.
    """
    node = cfg[group]
    if node.get("_target_") is not None:
        return True
    for key in node:
        if key not in NO_ARGUMENTS:
            raise ConfigError(f"{group}.{key}", node[key], f"no such key; {group}={node.get('name')} has no settings")
    return False


def resolve_factory(cfg: DictConfig, group: str, given: Iterable[str]) -> functools.partial:
    """The class or function that ``cfg[group]`` describes, with its settings checked and bound.

    Args:
        given: the arguments that it is still to be called with.

    Raises:
        ConfigError: naming the key as one writes it on the command line.
    """
    from hydra.utils import instantiate

    node = OmegaConf.select(cfg, group)
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        raise ConfigError(group, node, "must be a mapping with a _target_ to build")
    if (make := pydoc.locate(node._target_)) is None:
        raise ConfigError(f"{group}._target_", node._target_, "there is no such class or function")
    name = node.get("name", "")
    if not isinstance(name, str) or "/" in name:
        raise ConfigError(f"{group}.name", name, "must be a word: run folders are named by it")
    if missing := OmegaConf.missing_keys(node):
        kept = ", ".join(sorted(missing))
        fix = (
            f"was trained as an object with arguments that it does not keep as attributes: {kept}; pass {group}= again"
        )
        raise ConfigError(group, name, fix)
    read_by_others = (*NO_ARGUMENTS, *READ_BY_PROGRAM.get(group, ()))
    arguments = {key: node[key] for key in node if key not in read_by_others}
    if group == "grammar":  # a null option is the language's default, also if the class takes no such argument
        parameters = inspect.signature(make).parameters
        arguments = {key: value for key, value in arguments.items() if value is not None or key in parameters}
    check_arguments(make, arguments, group, given)
    return functools.partial(make, **instantiate(arguments, _convert_="all"))


@contextmanager
def config_error_context(cfg: DictConfig, group: str) -> Iterator[None]:
    """Turn what a constructor raises inside into a ConfigError that names the key to change."""
    try:
        yield
    except ConfigError as error:
        # An argument that another group has passed on, such as max_length, is that group's key.
        groups = [group, *(key for key in cfg if isinstance(cfg[key], DictConfig))]
        owner = next((g for g in groups if error.field in OmegaConf.select(cfg, g)), None)
        raise ConfigError(f"{owner}.{error.field}" if owner else error.field, error.value, error.fix) from error
    except refusals() as error:
        message = " ".join(str(error).split())
        key = key_in(OmegaConf.select(cfg, group), message)
        field = f"{group}.{key}" if key else group
        raise ConfigError(field, OmegaConf.select(cfg, f"{group}.{key or '_target_'}"), message) from error


def key_in(node: DictConfig, message: str) -> str | None:
    """Which of a group's keys a message is about: one that it names, or else one whose value it quotes."""
    words = re.findall(r"\w+", message)
    keys = [key for key in node if key not in NO_ARGUMENTS]
    assigned = [key for key in keys if f"{key}=" in message]
    named = [key for key in keys if any(word.startswith(key.removesuffix("s")) for word in words)]
    quoted = [key for key in keys if isinstance(node[key], str) and node[key] in words]
    return next(iter([*assigned, *named, *quoted]), None)


def refusals() -> tuple[type[Exception], ...]:
    """The exceptions by which constructors reject their arguments."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # its import takes seconds

    return ValueError, TypeError, MisconfigurationException


def check_before_lightning(cfg: DictConfig) -> None:
    """Check what needs no more than torch, since importing Lightning takes seconds more.

    Raises:
        ConfigError: naming the key, its value and how to fix it.
    """
    import torch

    from rule_extrapolation.config.memory import check_completions, check_weights, check_words

    check_settings(cfg)
    check_accelerator(cfg.trainer)
    resolve_factory(cfg, "optimizer", given=["params"])
    resolve_factory(cfg, "scheduler", given=["optimizer"])
    decoder = build(cfg, "decoding")
    check_words(cfg)
    if cfg.grammar._target_ is not None:
        grammar = build(cfg, "grammar", max_length=cfg.data.max_length)
        with torch.device("meta"):
            model = build_model(cfg, grammar)
        check_weights(cfg, model)
        check_completions(grammar, decoder, model)


def check_accelerator(trainer: DictConfig) -> None:
    """Raise a ConfigError if the accelerator is one that this machine lacks."""
    import torch

    wanted = trainer.get("accelerator")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["gpu"] = any(there.values())
    if not there.get(wanted, True):
        raise ConfigError("trainer.accelerator", wanted, "torch finds none on this machine; use auto or cpu")
