"""From a command line to objects: the Hydra configuration, the checks on it, and one line where it cannot work.

Everything that a configuration builds is described by the signature it is built with. A key that is not in that
signature, or a value of another type, is an error before any work; so is whatever the constructors refuse.
"""

from __future__ import annotations

import functools
import inspect
import os
import pydoc
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from rule_extrapolation.core.errors import ConfigError, check_positive, check_seed, one_of
from rule_extrapolation.core.task import Task
from rule_extrapolation.data import text_name
from rule_extrapolation.grammars import ALIASES, LANGUAGES, target
from rule_extrapolation.runs.identity import identity

PACKAGE = Path(__file__).parents[1]
# Installed, the configuration lies inside the package; in a checkout, beside it.
CONF_DIR = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())

NO_ARGUMENTS = ("_target_", "name", "search")
"""Keys that no constructor takes: the name is there for people and dashboards to filter by, ``search`` for sweepers."""

PLUGINS = {
    ("hydra/launcher", "joblib"): "-c constraints.txt hydra-joblib-launcher",
    ("hydra/launcher", "submitit_local"): "-c constraints.txt hydra-submitit-launcher",
    ("hydra/launcher", "submitit_slurm"): "-c constraints.txt hydra-submitit-launcher",
    ("hydra/launcher", "ray"): '-e ".[ray]", in an environment of its own',
    ("hydra/sweeper", "optuna"): "-c constraints.txt hydra-optuna-sweeper",
}
"""What pip has to install for Hydra to know these names."""


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
    seed: int
    seeds: int | None
    resume: str | None
    ckpt: str | None
    sweep: str | None
    threads: int | None
    run_dir: str


def register() -> None:
    """Make the languages a configuration group, and define the functions that the YAML files use."""
    for name in [*LANGUAGES, *ALIASES]:
        canonical = ALIASES.get(name, name)
        node = {"name": canonical, "_target_": target(name), "test_prompt_length": None}
        ConfigStore.instance().store(group="grammar", name=name, node={**node, **LANGUAGES[canonical].options})
    # data=text sets the language aside: runs are then named by the text.
    text = {"name": "${text_name:${data.path}}", "_target_": None}
    ConfigStore.instance().store(group="grammar", name="none", node=text)
    OmegaConf.register_new_resolver("text_name", text_name, replace=True)
    OmegaConf.register_new_resolver("twice", lambda number: 2 * number, replace=True)
    OmegaConf.register_new_resolver("min_positive", min_positive, replace=True)
    OmegaConf.register_new_resolver("sum_ints", sum_ints, replace=True)
    OmegaConf.register_new_resolver("seed_label", seed_label, replace=True)
    OmegaConf.register_new_resolver("sweep_name", lambda name: name or "default", replace=True)
    OmegaConf.register_new_resolver("identity", lambda *, _root_: identity(_root_), replace=True)


def groups() -> dict[str, list[str]]:
    """The choices of each configuration group."""
    choices = {folder.name: sorted(map(str, chosen(folder))) for folder in CONF_DIR.iterdir()}
    choices["grammar"] = sorted([*ALIASES, *LANGUAGES])
    return {group: choices[group] for group in sorted(choices) if choices[group]}


def chosen(folder: Path) -> Iterator[Path]:
    """What may be chosen of a group, without .yaml: its files, and those of its folders that set more than the group.
    Other folders hold parts of a choice."""
    for file in folder.rglob("*.yaml"):
        if file.parent == folder or file.read_text().startswith("# @package _global_"):
            yield file.relative_to(folder).with_suffix("")


def min_positive(*numbers: int | float) -> int | float:
    """The least number that is above 0: -1 is Lightning's "no limit", and whatever else is wrong is for it to say."""
    return min(number for number in numbers if isinstance(number, int | float) and number > 0)


def seed_label(seed: int, seeds: int | None) -> str:
    """seed0, or seeds0-7."""
    return f"seeds{seed}-{seed + seeds - 1}" if isinstance(seeds, int) else f"seed{seed}"


def sum_ints(*numbers: int) -> int:
    """The sum of what is a number; whatever is not is for the class that it is meant for to say."""
    return sum(number for number in numbers if isinstance(number, int))


def build(cfg: DictConfig, group: str, **runtime: Any) -> Any:
    """Build what ``cfg[group]`` describes, adding the run's own arguments.

    Raises:
        ConfigError: naming the key as one would write it on the command line.
    """
    make = resolve_factory(cfg, group, given=runtime)
    with config_error_context(cfg, group):
        return make(**runtime)


def build_data(cfg: DictConfig) -> Any:
    """The datamodule, of the language that ``grammar`` names unless it has been set aside (grammar=none).

    Raises:
        ConfigError: naming the key as one would write it on the command line.
    """
    if cfg.grammar._target_ is None:
        return build(cfg, "data")
    return build(cfg, "data", grammar=resolve_factory(cfg, "grammar", given=["max_length"]))


def build_model(cfg: DictConfig, task: Task) -> Any:
    """The model for a task's tokens, on torch's default device.

    Raises:
        ConfigError: naming the key as one would write it on the command line.
    """
    context = {"num_tokens": task.num_tokens, "process": task.process, "language": task.name}
    return build_with_context(cfg, "model", **context, accelerator=cfg.trainer.get("accelerator", "auto"))


def build_with_context(cfg: DictConfig, group: str, **offered: Any) -> Any:
    """``build`` with those of the run's own arguments that the class takes."""
    takes = inspect.signature(resolve_factory(cfg, group, given=offered)).parameters
    return build(cfg, group, **{name: value for name, value in offered.items() if name in takes})


def build_optional(cfg: DictConfig, group: str, **offered: Any) -> Any:
    """``build_with_context``, or None where the group's choice has ``_target_: null``: nothing is to be built."""
    return build_with_context(cfg, group, **offered) if has_target(cfg, group) else None


def has_target(cfg: DictConfig, group: str) -> bool:
    """Whether there is anything to build; a choice with ``_target_: null`` has no settings.

    Raises:
        ConfigError: it has been given one all the same.
    """
    node = cfg[group]
    if node.get("_target_") is not None:
        return True
    for key in node:
        if key not in NO_ARGUMENTS:
            raise ConfigError(f"{group}.{key}", node[key], f"no such key; {group}={node.get('name')} has no settings")
    return False


def resolve_factory(cfg: DictConfig, group: str, given: Iterable[str]) -> functools.partial:
    """What ``cfg[group]`` describes, held against its signature, still to be called with the ``given`` arguments.

    Raises:
        ConfigError: naming the key as one would write it on the command line.
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
    arguments = {key: node[key] for key in node if key not in NO_ARGUMENTS}
    check_arguments(make, arguments, group, given)
    return functools.partial(make, **instantiate(arguments, _convert_="all"))


@contextmanager
def config_error_context(cfg: DictConfig, group: str) -> Iterator[None]:
    """What a constructor refuses becomes a ConfigError that names the key to change."""
    try:
        yield
    except ConfigError as error:
        # What a class was given by another group (max_length, say) is that group's key.
        groups = [group, *(key for key in cfg if isinstance(cfg[key], DictConfig))]
        owner = next((g for g in groups if error.field in OmegaConf.select(cfg, g)), None)
        raise ConfigError(f"{owner}.{error.field}" if owner else error.field, error.value, error.fix) from error
    except refusals() as error:
        made = OmegaConf.select(cfg, f"{group}._target_")
        raise ConfigError(group, made, " ".join(str(error).split())) from error


def refusals() -> tuple[type[Exception], ...]:
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # only now: it takes seconds

    return ValueError, TypeError, MisconfigurationException


def check_settings(cfg: DictConfig) -> None:
    """Check the top level, and the numbers with which there would be no training or no validation.

    Raises:
        ConfigError: naming the key, its value and what would work.
    """
    check_arguments(Settings, dict(cfg), "")
    check_seed(seed=cfg.seed)
    if cfg.threads is not None:
        check_positive(threads=cfg.threads)
    if cfg.seeds is not None:
        check_positive(seeds=cfg.seeds)
        check_seed(seeds=cfg.seed + cfg.seeds - 1)
        if cfg.resume is not None:
            raise ConfigError("seeds", cfg.seeds, "resume= goes on with one run; leave seeds out, and set its seed")
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


def is_distributed(trainer: DictConfig) -> bool:
    """Whether the settings ask for several processes, as far as they tell without Lightning."""
    counts = [trainer.get(name, 1) for name in ("devices", "num_nodes")]
    return trainer.get("strategy", "auto") not in (None, "auto") or any(isinstance(n, int) and n > 1 for n in counts)


def check_before_lightning(cfg: DictConfig) -> None:
    """Check what needs torch alone: importing Lightning takes seconds more, which most errors need not wait for.

    Raises:
        ConfigError: naming the key, its value and what would work.
    """
    import torch

    check_settings(cfg)
    resolve_factory(cfg, "optimizer", given=["params"])
    resolve_factory(cfg, "scheduler", given=["optimizer"])
    build(cfg, "decoding")
    if cfg.grammar._target_ is not None:
        grammar = build(cfg, "grammar", max_length=cfg.data.max_length)
        with torch.device("meta"):
            build_model(cfg, grammar)


def check_arguments(make: Callable[..., Any], arguments: dict[str, Any], group: str, given: Iterable[str] = ()) -> None:
    """Hold keys and values against a signature.

    Raises:
        ConfigError: a key that ``make`` does not take or that is given by the program, a value of the wrong type, or
            no value where one is needed.
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
            raise ConfigError(f"{prefix}{key}", value, f"no such key; {one_of(key, others)}")
    for key, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if required and key not in arguments and key not in given:
            raise ConfigError(f"{prefix}{key}", None, "is needed")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from a YAML file can be what the hint asks for."""
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
        return (typing.get_origin(hint) or hint) in (list, tuple, Iterable, Sequence)
    return hint not in (int, float, str, bool, type(None))  # a mapping, which may describe an object


def describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        *others, last = map(str, typing.get_args(hint))
        return f"one of {', '.join([*others, last])}" if others else last
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("null" if option is type(None) else describe(option) for option in typing.get_args(hint))
    return getattr(hint, "__name__", str(hint))


def one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's errors as one line with the key, its value and what would work."""
    if isinstance(error, MissingConfigException):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if package := PLUGINS.get((group, choice)):
            return f"{group}={choice}: needs a package: pip install {package}"
    if isinstance(error, MissingConfigException) and error.options:
        own, _, name = str(error.missing_cfg_file).partition("/")
        if own in groups():  # Hydra lists the files of the folder that a choice such as paper/aNbN is not in
            return f"{own}={name}: {one_of(name, groups()[own])}"
        return f"{group}={choice}: {one_of(choice, error.options)}"
    if unresolved := re.match(r"Error resolving interpolation '(.*)', possible interpolation keys: (.*)", str(error)):
        # A choice of the defaults list that goes by another group's.
        needed, given = re.findall(r"\$\{(\w+)\}", unresolved[1]), unresolved[2].split(", ")
        return f"{' and '.join(group for group in needed if group not in given)}=null: is needed"
    cause = error.__cause__
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and isinstance(cause.parent_node, DictConfig):
        override = str(error).rpartition("+")[2] or cause.full_key
        keys = [str(key) for key in cause.parent_node if key != "_target_"]
        more = "; + in front adds a key that the YAML leaves out" if "." in str(cause.full_key) else ""
        return f"{override}: no such key; {one_of(cause.key, keys)}{more}"
    return " ".join(str(error).split()) or repr(error)
