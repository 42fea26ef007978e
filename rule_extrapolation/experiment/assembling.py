"""From a configuration to the objects of a run. Whatever is invalid is rejected here, before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback, ProgressBar
from omegaconf import DictConfig, OmegaConf

from rule_extrapolation.config.building import (
    build,
    build_data,
    build_model,
    build_optional,
    build_with_context,
    check_made,
    config_error_context,
    has_target,
    resolve_factory,
)
from rule_extrapolation.config.checks import check_settings
from rule_extrapolation.core.errors import ConfigError, check_choice, check_positive
from rule_extrapolation.core.task import Task
from rule_extrapolation.experiment.learning import check_learning_rate, check_precision
from rule_extrapolation.experiment.processes import World, world_of
from rule_extrapolation.experiment.resuming import checkpoint_to_resume, load_initial_weights
from rule_extrapolation.experiment.sweep import is_worker
from rule_extrapolation.grammars.checking import check_language
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.training.callbacks.best_metrics import BestMetrics
from rule_extrapolation.training.callbacks.last_checkpoint import LastCheckpoint
from rule_extrapolation.training.completion_training import CompletionTraining
from rule_extrapolation.training.decay import with_decay
from rule_extrapolation.training.language_modeling import LanguageModeling
from rule_extrapolation.training.module import RuleExtrapolation
from rule_extrapolation.training.ood import OODTraining
from rule_extrapolation.training.text import TextModeling


@dataclass
class Experiment:
    """All objects of one run."""

    data: LightningDataModule
    module: LanguageModeling
    callbacks: list[Callback]
    checkpoint: Path | None
    """The checkpoint that training resumes from."""
    world: World

    @property
    def best_metrics(self) -> BestMetrics:
        return next(callback for callback in self.callbacks if isinstance(callback, BestMetrics))


def assemble(
    cfg: DictConfig, device: str | None = None, grammar: Grammar | None = None, model: LanguageModel | None = None
) -> Experiment:
    """Build and check everything that a run needs.

    Args:
        device: where the model is built; on "meta" it has no weights, which is enough for a check.
        grammar, model: objects that take the place of what the configuration describes.

    Raises:
        ConfigError: naming the key, its value and how to fix it.
    """
    check_settings(cfg)
    data = build_data(cfg, grammar)
    if data.task.kind == "language":
        check_once(data.task, cfg, grammar)
    model = build_model_for(cfg, data, device, model)
    check_trainable(cfg, model)
    ood = build_optional(cfg, "training", grammar=data.task, model=model)
    module = build_module(cfg, data, model, ood)
    load_initial_weights(cfg, module, device)
    check_accumulation(cfg, data)
    check_precision(cfg, model)
    if has_target(cfg, "logger"):
        logger = resolve_factory(cfg, "logger", given=["save_dir", "name", "config", "run_tags"])
        if check := getattr(logger.func, "check_settings", None):
            check(**logger.keywords)
    trainer = build(cfg, "trainer", logger=False, callbacks=[])  # Lightning checks its own settings
    check_optimization(cfg, data, module)
    world = world_of(trainer, cfg)
    if world.size > 1 and not model.rows_are_independent:
        fix = "each process would number its own rows, on which the model's logits depend; train it in one process"
        raise ConfigError("trainer.devices", cfg.trainer.devices, fix)
    callbacks = build_callbacks(cfg, module)
    return Experiment(data, module, callbacks, checkpoint_to_resume(cfg, module), world)


CHECKED: set[str] = set()
"""The languages that this process has checked, as their settings."""


def check_once(language: Grammar, cfg: DictConfig, given: Grammar | None) -> None:
    """Check that the parts of a language agree, unless this process has checked the same settings.

    Args:
        given: the language, if it is not made from the configuration. It is checked each time.
    """
    settings = f"{OmegaConf.to_container(cfg.grammar, resolve=True)} {language.max_length}"
    if given is not None or settings not in CHECKED:
        check_language(language)
    CHECKED.add(settings)


def build_model_for(
    cfg: DictConfig, data: Any, device: str | None = None, model: LanguageModel | None = None
) -> LanguageModel:
    """The model, on a device of torch's, by default the CPU.

    Args:
        model: one that has been built already, which is only checked.
        data: the datamodule, or what is left of it in a run folder: ``task``, ``conditional`` and ``carry_state``.

    Raises:
        ConfigError: the configuration is invalid, or the model does not train on such data.
    """
    if cfg.grammar.name != (name := data.task.name):
        fix = f"the language's name is {name}; use grammar={name}, and the same name for an entry point"
        raise ConfigError("grammar.name", cfg.grammar.name, fix)
    if model is not None:
        check_num_tokens(model, data.task)
    else:
        with torch.device(device or "cpu"):
            model = build_model(cfg, data.task)
    if model.conditional and not data.conditional:
        fix = "trains on a language's prompts and completions; set data=completions"
        raise ConfigError("model", cfg.model.name, fix)
    if data.conditional and not model.conditional:
        raise ConfigError("model", cfg.model.name, "does not train on prompts and completions; set data=grammar")
    return model


def check_trainable(cfg: DictConfig, model: LanguageModel) -> None:
    """Raise a ConfigError if a model has weights but none that training would change."""
    frozen = not model.num_parameters and any(True for _ in model.parameters())
    if frozen and not model.fitted_by_counting:
        raise ConfigError("model", cfg.model.name, "none of its weights is trainable; call requires_grad_(True) on it")


def check_num_tokens(model: LanguageModel, task: Task) -> None:
    """Raise a ConfigError unless the model's logits are for as many tokens as the task has."""
    with torch.no_grad():
        num_tokens = model(torch.zeros(1, 1, dtype=torch.long)).shape[1]
    if num_tokens != task.num_tokens:
        name = type(model).__name__
        raise ConfigError("model", name, f"has {num_tokens} tokens; {task.name} has {task.num_tokens}")


def build_module(
    cfg: DictConfig, data: Any, model: LanguageModel, ood: OODTraining | None = None, trains: bool = True
) -> LanguageModeling:
    """The LightningModule that trains the model on such data.

    Args:
        trains: whether it needs an optimizer. That of a trained run does not.

    Raises:
        ConfigError: naming the key, its value and how to fix it.
    """
    decoder = build(cfg, "decoding")
    optimizer = None
    if trains:
        factory = resolve_factory(cfg, "optimizer", given=["params"])
        optimizer = with_decay(factory, cfg.optimizer.get("decay", "convention"))
    scheduler = resolve_factory(cfg, "scheduler", given=["optimizer"]) if trains else None
    with config_error_context(cfg, "data"):
        return module_class(data)(model, data.task, optimizer, scheduler, decoder, ood)


def module_class(data: Any) -> Callable[..., LanguageModeling]:
    """Which LightningModule trains on such data."""
    if data.task.kind == "text":
        return partial(TextModeling, carry_state=data.carry_state)
    return CompletionTraining if data.conditional else RuleExtrapolation


def check_accumulation(cfg: DictConfig, data: Any) -> None:
    """Raise a ConfigError if an epoch has fewer batches than an optimizer step is to have."""
    accumulated = cfg.trainer.get("accumulate_grad_batches") or 1
    if accumulated > 1 and accumulated > (batches := len(data.train_dataloader())):
        has = f"an epoch has {batches} {'batches' if batches > 1 else 'batch'}"
        fix = f"{has}, and a step takes those of one epoch; set at most {batches}, or a smaller data.batch_size"
        raise ConfigError("trainer.accumulate_grad_batches", accumulated, fix)


def check_optimization(cfg: DictConfig, data: Any, module: LanguageModeling) -> None:
    """Build the optimizer and the scheduler once, for the errors that they raise.

    Raises:
        ConfigError: naming the key, its value and how to fix it; or training would change no weight.
    """
    # No optimizer takes an empty list of parameters, which a model with nothing to train has.
    parameters = list(module.model.parameters()) or [torch.nn.Parameter(torch.zeros(()))]
    with config_error_context(cfg, "optimizer"):
        optimizer = module.make_optimizer(parameters)
    mixed = str(cfg.trainer.get("precision")).endswith("-mixed")
    if mixed and cfg.trainer.get("gradient_clip_val") and getattr(optimizer, "_step_supports_amp_scaling", False):
        fix = "Lightning does not clip its gradients in mixed precision; set false"
        raise ConfigError("optimizer.fused", True, fix)
    with config_error_context(cfg, "scheduler"):
        schedule = module.make_scheduler(optimizer)
    if module.model.num_parameters and not module.model.fitted_by_counting:
        check_learning_rate(cfg, data, optimizer, schedule)


def build_callbacks(cfg: DictConfig, module: LanguageModeling) -> list[Callback]:
    """The callbacks that the configuration names.

    Raises:
        ConfigError: naming the key, its value and how to fix it.
    """
    nodes = {name: node for name, node in cfg.callbacks.items() if node is not None}
    # Where other runs print too, its lines begin with the name of its folder.
    run_name = Path(cfg.run_dir).name if is_worker() else None
    context = {"grammar": module.task, "model": module.model, "run_name": run_name}
    callbacks = [build_with_context(cfg, f"callbacks.{name}", **context) for name in nodes]
    for name, callback in zip(nodes, callbacks):
        check_made(cfg, f"callbacks.{name}", callback, Callback)
    if not cfg.trainer.get("enable_progress_bar", True):
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    for name, needed in {"history": BestMetrics, "last": LastCheckpoint}.items():
        if not any(isinstance(callback, needed) for callback in callbacks):
            raise ConfigError(f"callbacks.{name}", None, "must be set: results.json and resume= need what it keeps")
    for name, node in nodes.items():
        if "monitor" in node:
            check_choice(module.validation_names(), **{f"callbacks.{name}.monitor": node.monitor})
        if "patience" in node:
            check_positive(**{f"callbacks.{name}.patience": node.patience})
    return callbacks
