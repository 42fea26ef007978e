"""Estimates of the memory that a run takes, checked before any work."""

from __future__ import annotations

import math

import psutil
from omegaconf import DictConfig

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.inference.decoding import Decoder
from rule_extrapolation.models.language_model import LanguageModel

TOKEN = 8
"""The bytes of a token in a batch."""
WEIGHT = 16
"""The bytes of a weight, its gradient and the two moments that AdamW keeps of it."""


def check_words(cfg: DictConfig) -> None:
    """Raise a ConfigError if the words, or those of one batch of a text, do not fit into memory."""
    keys = ["batch_size", *(key for key in ("num_train", "num_val", "num_test") if key in cfg.data)]
    if "num_train" in keys:
        keys.append("max_length")  # of a language that trains on each word once, up to this many
    # Values of other types are refused when the data is built.
    numbers = {f"data.{key}": cfg.data[key] for key in keys if type(cfg.data[key]) is int}
    largest = max(numbers, key=numbers.get)
    words, width = numbers[largest], cfg.data.max_length + 2
    check_bytes(words * width * TOKEN, f"{words:,} words of {width:,} tokens", **{largest: words})


def check_completions(grammar: Grammar, decoder: Decoder, model: LanguageModel) -> None:
    """Raise a ConfigError if the completions of the prompts do not fit into memory."""
    for prompts in grammar.prompts.values():
        rows, new = len(prompts), decoder.budget(model, prompts.shape[1])
        what = f"{rows:,} completions of {new:,} tokens"
        check_bytes(rows * new * TOKEN, what, **{"decoding.max_new_tokens": decoder.max_new_tokens})


def check_weights(cfg: DictConfig, model: LanguageModel) -> None:
    """Raise a ConfigError if training the model's weights, for each of ``seeds``, does not fit into memory.

    Args:
        model: on the device "meta", where weights take no memory.
    """
    num = sum(parameter.numel() for parameter in model.parameters()) * (cfg.seeds or 1)
    numbers = {f"model.{key}": value for key, value in cfg.model.items() if type(value) is int}
    largest = max(numbers, key=numbers.get, default="model.name")
    value = numbers.get(largest, cfg.model.name)
    check_bytes(num * WEIGHT, f"{num:,} weights, with gradients and optimizer,", **{largest: value})


def check_bytes(needed: int, what: str, **field: object) -> None:
    available = psutil.virtual_memory().available
    if needed > available:
        [(key, value)] = field.items()
        raise ConfigError(key, value, f"{what} take {in_words(needed)}; {in_words(available)} are available; use less")


def in_words(size: float) -> str:
    """A number of bytes.

    >>> in_words(3 * 2**40 / 2)
    '1.5 TiB'
    """
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = min(int(math.log(max(size, 1), 1024)), len(units) - 1)
    return f"{size / 1024**power:,.1f} {units[power]}"
