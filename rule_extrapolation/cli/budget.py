"""Find the width at which a model has a given number of weights: rule-extrapolation budget"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rule_extrapolation.cli.arguments import help_text, parse
from rule_extrapolation.cli.pipes import ends_with_pipe
from rule_extrapolation.cli.preflight import fail
from rule_extrapolation.config.building import build_data, build_model, check_before_lightning
from rule_extrapolation.config.composing import compose, register
from rule_extrapolation.config.depth_and_width import set_depth_and_width
from rule_extrapolation.config.messages import one_line
from rule_extrapolation.core.errors import ConfigError, check_positive, one_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE = """\
Find the width at which a model has a given number of weights.

  rule-extrapolation budget model=lstm parameters=50000 vary=embedding_dim,hidden_dim
  rule-extrapolation budget model=mamba model.n_layers=4 grammar=L5 parameters=50000 vary=d_model

All settings of rule-extrapolation train can be given too, such as depth, grammar and experiment."""


@dataclass
class Arguments:
    parameters: Annotated[int, "number of trainable weights to aim for"]
    vary: Annotated[list[str], "keys of the model to vary; they keep their ratio to the first"]


@dataclass
class Size:
    values: dict[str, int]
    """The values of the varied keys."""
    parameters: int


def sizes(cfg: DictConfig, keys: list[str], start: int = 1) -> Iterator[Size]:
    """The number of weights at every width from ``start`` on that the architecture admits, without end.

    The first key counts up and the others keep their ratio to it. Widths at which one of them would be a fraction, or
    that the constructor rejects, are omitted.
    """
    for width in itertools.count(start):
        if all(width * cfg.model[key] % cfg.model[keys[0]] == 0 for key in keys):
            try:
                yield sized(cfg, keys, width)
            except ConfigError:
                continue


def sized(cfg: DictConfig, keys: list[str], width: int) -> Size:
    """The model with the first key at that width, built without weights on the meta device.

    Raises:
        ConfigError: the architecture does not admit it.
    """
    import torch

    values = {key: width * cfg.model[key] // cfg.model[keys[0]] for key in keys}
    varied = cfg.copy()
    varied.model.update(values)
    task = build_data(cfg).task
    with torch.device("meta"):
        model = build_model(varied, task)
    return Size(values, model.num_parameters)


def nearest(cfg: DictConfig, keys: list[str], parameters: int) -> tuple[list[Size], int]:
    """The width whose number of weights is nearest to ``parameters`` between its neighbours, and its place among them.

    Raises:
        ConfigError: a key that is not a width of the model, or a model that cannot be built as it is configured.
    """
    check_positive(parameters=parameters)
    check_before_lightning(cfg)
    for key in keys:
        if key not in cfg.model:
            raise ConfigError("vary", key, one_of(key, [k for k in cfg.model if type(cfg.model[k]) is int]))
        if type(cfg.model[key]) is not int or cfg.model[key] < 1:
            raise ConfigError("vary", key, f"model.{key}={cfg.model[key]} is not a width; name whole numbers")
    own = cfg.model[keys[0]]
    if sized(cfg, keys, 2 * own).parameters == sized(cfg, keys, own).parameters:
        raise ConfigError("vary", ",".join(keys), "does not change the number of weights; name a width")
    # Every multiple of the configured width is admitted. Find the two between which the wanted number lies.
    low, high = 0, 1
    while sized(cfg, keys, high * own).parameters <= parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sized(cfg, keys, middle * own).parameters <= parameters else (low, middle)
    found: list[Size] = []
    for size in sizes(cfg, keys, start=max(1, (low - 1) * own)):
        found.append(size)
        if len(found) > 1 and found[-2].parameters > parameters:
            break
    best = min(range(len(found)), key=lambda i: abs(found[i].parameters - parameters))
    start = max(0, best - 1)
    return found[start : best + 2], best - start


def print_budget(arguments: Arguments, overrides: list[str]) -> None:
    cfg = set_depth_and_width(compose(*overrides, "run_dir=''"))
    shown, best = nearest(cfg, arguments.vary, arguments.parameters)
    print(f"{cfg.model.name} on {cfg.grammar.name}, aiming for {arguments.parameters:,} weights")
    for i, size in enumerate(shown):
        values = " ".join(f"model.{key}={value}" for key, value in size.values.items())
        share = size.parameters / arguments.parameters - 1
        print(f"{'nearest' if i == best else '':9}{values}  {size.parameters:,} ({share:+.1%})")


@ends_with_pipe
def main() -> None:
    words = sys.argv[1:]
    if {"--help", "-h"} & set(words):
        return print(help_text(Arguments, USAGE))
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # cli/train.py says why
    register()
    own = [word for word in words if word.partition("=")[0] in ("parameters", "vary")]
    try:
        print_budget(parse(Arguments, own), [word for word in words if word not in own])
    except Exception as error:  # the cause is always the command line
        fail(one_line(error))


if __name__ == "__main__":
    main()
