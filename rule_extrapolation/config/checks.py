"""Checks of a configuration that need neither torch nor Lightning."""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from omegaconf import DictConfig, ListConfig

from rule_extrapolation.config.trainer_checks import check_trainer
from rule_extrapolation.core.errors import ConfigError, check_choice, check_positive, check_seed, one_of
from rule_extrapolation.core.names import check_file_name

NO_ARGUMENTS = ("_target_", "name", "search", "depth_key", "width_key")
"""Keys that no constructor takes. People and dashboards filter by ``name``, sweepers read ``search``, and ``depth`` and
``width`` set the keys that ``depth_key`` and ``width_key`` name."""

READ_BY_PROGRAM = {"optimizer": ("decay",)}
"""Keys of a group that no constructor takes, but the program itself."""
DECAYS = ("convention", "all")
"""Values of optimizer.decay."""


@dataclass
class Settings:
    """The configuration's top level."""

    grammar: dict
    data: dict
    model: dict
    optimizer: dict
    scheduler: dict
    decoding: dict
    trainer: dict
    callbacks: dict
    logger: dict
    training: dict
    seed: Annotated[int, "of the weights, of the words and of their order"]
    seeds: Annotated[int | None, "how many seeds to train, from seed on, each with its own run folder"]
    resume: Annotated[str | None, "a run folder or a .ckpt file to resume"]
    ckpt: Annotated[str | None, "a run folder or a .ckpt file to take the weights from; the steps start again"]
    depth: Annotated[int | None, "the number of layers, whatever the model calls it"]
    width: Annotated[int | None, "the model's width, whatever the model calls it"]
    threads: Annotated[int | None, "how many threads a run uses; default: one for each core"]
    sweep: Annotated[str | None, "the name of a sweep, of its folder and of its W&B group"]
    run_dir: Annotated[str, "where the run writes, which follows hydra.run.dir: set that one"]
    # Runs of earlier versions did not record it.
    quirks: Annotated[str, "published: do what the published code does; else none"] = "none"


MAX_SEEDS = 1000
MAX_THREADS = 1024
"""Many more end in a segmentation fault."""
MAX_DEPTH = 1000
"""Many more layers take minutes to build."""


def check_seeds(cfg: DictConfig) -> None:
    """Check ``seed`` and ``seeds``, by which folders are named."""
    for key, hint in (("seed", int), ("seeds", int | None)):
        if not fits(cfg[key], hint):
            raise ConfigError(key, cfg[key], f"must be {describe(hint)}")
    check_seed(seed=cfg.seed)
    if cfg.seeds is not None:
        check_positive(seeds=cfg.seeds)
        check_at_most(MAX_SEEDS, seeds=cfg.seeds)
        check_seed(seeds=cfg.seed + cfg.seeds - 1)


def check_at_most(most: int, **fields: Any) -> None:
    """Raise a ConfigError for the first int above ``most``."""
    for field, value in fields.items():
        if type(value) is int and value > most:
            raise ConfigError(field, value, f"must be at most {most:,}")


def check_settings(cfg: DictConfig) -> None:
    """Check the top level, and the numbers without which nothing would be trained or validated.

    Raises:
        ConfigError: naming the key, its value and how to fix it.
    """
    check_arguments(Settings, dict(cfg), "")
    check_seeds(cfg)
    check_file_name(sweep=cfg.sweep, **{"grammar.name": cfg.grammar.get("name") or None})
    check_positive(**{key: cfg[key] for key in ("threads", "depth", "width") if cfg[key] is not None})
    check_at_most(MAX_THREADS, threads=cfg.threads)
    depth_key = cfg.model.get("depth_key")
    check_at_most(MAX_DEPTH, depth=cfg.depth, **{f"model.{depth_key}": cfg.model.get(depth_key or "")})
    if cfg.seeds is not None:
        if cfg.resume is not None:
            raise ConfigError("seeds", cfg.seeds, "resume= continues one run; leave seeds out, and set its seed")
        if "WANDB_SWEEP_ID" in os.environ:
            raise ConfigError("seeds", cfg.seeds, "W&B's agent takes one run at a time; sweep over seed instead")
        if is_distributed(cfg.trainer):
            raise ConfigError("seeds", cfg.seeds, "several processes take one run at a time; use -m seed=0,1,...")
    if "max_length" in cfg.data:
        if type(cfg.data.max_length) is not int:
            raise ConfigError("data.max_length", cfg.data.max_length, "must be int")
        check_positive(**{"data.max_length": cfg.data.max_length})
    limits = {key: value for key, value in cfg.trainer.items() if key.startswith(("max_", "limit_")) and value != -1}
    names = ("val_check_interval", "check_val_every_n_epoch", "gradient_clip_val", "accumulate_grad_batches")
    numbers = {**limits, **{name: cfg.trainer.get(name) for name in names}}
    numbers = {**{f"trainer.{key}": value for key, value in numbers.items()}, "optimizer.lr": cfg.optimizer.get("lr")}
    check_positive(**{key: value for key, value in numbers.items() if isinstance(value, int | float)})
    check_trainer(cfg.trainer)
    check_choice(DECAYS, **{"optimizer.decay": cfg.optimizer.get("decay", "convention")})


def is_distributed(trainer: DictConfig) -> bool:
    """Whether the settings ask for several processes, as far as can be told without Lightning."""
    counts = [trainer.get(name, 1) for name in ("devices", "num_nodes")]
    return trainer.get("strategy", "auto") not in (None, "auto") or any(isinstance(n, int) and n > 1 for n in counts)


def check_arguments(make: Callable[..., Any], arguments: dict[str, Any], group: str, given: Iterable[str] = ()) -> None:
    """Check keys and values against a signature.

    Args:
        given: arguments that the program passes itself.

    Raises:
        ConfigError: a key that ``make`` does not take or that the program passes, a value of the wrong type, or no
            value where one must be set.
    """
    prefix = f"{group}." if group else ""
    parameters = inspect.signature(make).parameters
    hints = typing.get_type_hints(make.__init__ if inspect.isclass(make) else make)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key, value in arguments.items():
        if key in hints and not fits(value, hints[key]):
            raise ConfigError(f"{prefix}{key}", value, f"must be {describe(hints[key])}")
        if key in given or not (key in parameters or takes_any):
            others = [name for name in parameters if name not in given]
            known = one_of(key, others) if others else f"{make.__name__} takes none"
            raise ConfigError(f"{prefix}{key}", value, f"no such key; {known}")
    for key, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if required and key not in arguments and key not in given:
            raise ConfigError(f"{prefix}{key}", None, "must be set")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from a YAML file is of the type that a hint asks for."""
    if hint is Any:
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if isinstance(value, bool) or value is None:
        return hint is type(value)
    if isinstance(value, (int, float, str)):
        return isinstance(value, hint if hint is not float else (int, float)) if hint in (int, float, str) else False
    if isinstance(value, ListConfig | list):
        if size := fixed_size(hint):
            return len(value) == size
        return (typing.get_origin(hint) or hint) in (list, tuple, Iterable, Sequence)
    return hint not in (int, float, str, bool, type(None))  # a mapping, which may describe an object


def fixed_size(hint: Any) -> int | None:
    """The number of elements that a hint such as tuple[float, float] asks for, or None if any number is right."""
    elements = typing.get_args(hint)
    return len(elements) if typing.get_origin(hint) is tuple and Ellipsis not in elements else None


def describe(hint: Any) -> str:
    """A type hint in words."""
    if size := fixed_size(hint):
        return f"a list of {size}"
    if typing.get_origin(hint) is typing.Literal:
        *others, last = map(str, typing.get_args(hint))
        return f"one of {', '.join([*others, last])}" if others else last
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("null" if option is type(None) else describe(option) for option in typing.get_args(hint))
    return getattr(hint, "__name__", str(hint))
