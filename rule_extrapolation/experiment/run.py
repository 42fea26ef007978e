"""One run, from its configuration to its run folder."""

from __future__ import annotations

import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from rule_extrapolation.config.composing import (
    build,
    build_data,
    build_model,
    build_with_context,
    check_settings,
    config_error_context,
    resolve_factory,
)
from rule_extrapolation.core.errors import ConfigError, check_choice, check_free, check_positive
from rule_extrapolation.core.threads import limited, multiply_adds, threads_for
from rule_extrapolation.experiment.checkpoints import (
    find_checkpoint,
    has_ended,
    last_checkpoint,
    load,
    load_weights,
    logged_rows,
)
from rule_extrapolation.experiment.distributed import World, is_follower, processes, world_of
from rule_extrapolation.experiment.sweep import is_worker
from rule_extrapolation.ops.allocator import keep_freed_memory
from rule_extrapolation.reporting.terminal import describe_run, print_run
from rule_extrapolation.reporting.text import print_text_run
from rule_extrapolation.runs import run_folder
from rule_extrapolation.training.callbacks.best_metrics import BestMetrics
from rule_extrapolation.training.callbacks.last_checkpoint import LastCheckpoint
from rule_extrapolation.training.completion_training import CompletionTraining
from rule_extrapolation.training.language_modeling import LanguageModeling, end_of_training
from rule_extrapolation.training.loggers import metrics_file
from rule_extrapolation.training.loggers.wandb import close_run
from rule_extrapolation.training.module import RuleExtrapolation
from rule_extrapolation.training.text import TextModeling


@dataclass
class Experiment:
    data: LightningDataModule
    module: LanguageModeling
    callbacks: list[Callback]
    checkpoint: Path | None
    """Where training goes on from."""
    world: World

    @property
    def history(self) -> BestMetrics:
        return next(callback for callback in self.callbacks if isinstance(callback, BestMetrics))


def quiet_lightning() -> None:
    """Leave out what Lightning says of things that are as they should be."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance\\(treespec, LeafSpec\\).* is deprecated",  # Lightning's own, of torch's
        "The number of training batches .* is smaller than the logging interval",  # metrics are logged by steps
        "Checkpoint directory .* exists and is not empty",  # the best checkpoint of the run that goes on
        "Experiment logs directory .* exists and is not empty",  # Hydra's files; a former run's stop the command
    ):
        warnings.filterwarnings("ignore", message)


def assemble(cfg: DictConfig, device: str | None = None, data: Any = None) -> Experiment:
    """Build everything that a run needs and that can refuse its configuration.

    Args:
        device: where the model is built; on "meta" it has no weights, for a check alone.
        data: the datamodule, or what has its ``task``, ``conditional`` and ``carry_state``; by default, the one that
            is configured.

    Raises:
        ConfigError: naming the key, its value and what would work.
    """
    quiet_lightning()
    # Where trainer.deterministic is set, torch would fill all new memory with nan, a tenth of a small model's step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    check_settings(cfg)
    data = data or build_data(cfg)
    task = data.task
    if cfg.grammar.name != task.name:
        raise ConfigError("grammar.name", cfg.grammar.name, f"the language's name is {task.name}; use grammar=")
    with torch.device(device or "cpu"):
        model = build_model(cfg, task)
    if model.conditional != data.conditional:
        apart = "trains on a language's words in two parts; set data=completions"
        whole = "does not train on words in two parts; set data=grammar"
        raise ConfigError("model", cfg.model.name, apart if model.conditional else whole)
    decoder = build(cfg, "decoding")
    optimizer = resolve_factory(cfg, "optimizer", given=["params"])
    scheduler = resolve_factory(cfg, "scheduler", given=["optimizer"])
    ood = None
    if set(cfg.training) != {"name"}:  # standard has nothing to set
        ood = build_with_context(cfg, "training", grammar=task, model=model)
    with config_error_context(cfg, "data"):
        module = training_module(data)(model, task, optimizer, scheduler, decoder, ood)
    load_weights(cfg, module, device)
    # A model with nothing to train gets a parameter for the check: no optimizer takes none.
    parameters = list(model.parameters()) or [torch.nn.Parameter(torch.zeros(()))]
    with config_error_context(cfg, "optimizer"):
        built = optimizer(parameters)
    mixed = str(cfg.trainer.get("precision")).endswith("-mixed")
    if mixed and cfg.trainer.get("gradient_clip_val") and getattr(built, "_step_supports_amp_scaling", False):
        raise ConfigError(
            "optimizer.fused", True, "Lightning does not clip its gradients in mixed precision; set false"
        )
    with config_error_context(cfg, "scheduler"):
        scheduler(built)
    if set(cfg.logger) != {"name"}:  # csv has nothing to set
        resolve_factory(cfg, "logger", given=["save_dir", "name", "config", "run_tags"])
    trainer = build(cfg, "trainer", logger=False, callbacks=[])  # Lightning's own checks
    world = world_of(trainer, cfg)
    nodes = {name: node for name, node in cfg.callbacks.items() if node is not None}
    offered = {"grammar": task, "model": model, "run_name": beside_others(cfg)}
    callbacks = [build_with_context(cfg, f"callbacks.{name}", **offered) for name in nodes]
    if not cfg.trainer.get("enable_progress_bar", True):
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    for name, needed in {"history": BestMetrics, "last": LastCheckpoint}.items():
        if not any(isinstance(callback, needed) for callback in callbacks):
            raise ConfigError(f"callbacks.{name}", None, f"is needed: results.json and resume= read what {name} keeps")
    for name, node in nodes.items():
        if "monitor" in node:
            check_choice(module.validation_names(), **{f"callbacks.{name}.monitor": node.monitor})
        if "patience" in node:
            check_positive(**{f"callbacks.{name}.patience": node.patience})
    return Experiment(data, module, callbacks, find_checkpoint(cfg, module), world)


def beside_others(cfg: DictConfig) -> str | None:
    """The name of a run's folder where other runs print beside it."""
    return Path(cfg.run_dir).name if is_worker() else None


def training_module(data: Any) -> Callable[..., LanguageModeling]:
    """What makes the LightningModule that trains on such data."""
    if data.task.kind == "text":
        return partial(TextModeling, carry_state=data.carry_state)
    return CompletionTraining if data.conditional else RuleExtrapolation


def print_results(run: Run) -> None:
    """Print what has come out of a run, in the way of what it was trained on."""
    show = print_text_run if run.task.kind == "text" else print_run
    show(Console(), run.task, run.results, run.rows, run.folder)


def start_loggers(cfg: DictConfig, folder: Path, task: Any) -> list[Logger]:
    """metrics.csv, and what ``logger`` names besides."""
    loggers: list[Logger] = [metrics_file.MetricsFile(str(folder))]
    if "_target_" in cfg.logger:
        about = {
            "save_dir": str(folder),
            "name": f"{task.name}-{cfg.model.name}-seed{cfg.seed}",
            "config": OmegaConf.to_container(cfg, resolve=True),
            "run_tags": run_tags(cfg, task),
        }
        loggers.append(build_with_context(cfg, "logger", **about))
    return loggers


def run_tags(cfg: DictConfig, task: Any) -> dict[str, str]:
    """What one would look for a run by, or group runs by."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    names = {"language": task.name, "label": task.label, "architecture": cfg.model.name}
    names["experiment"] = choices.get("experiment")
    return {subject: name for subject, name in names.items() if name}


@dataclass
class Run:
    """A run under way, and what will be written of it."""

    cfg: DictConfig
    experiment: Experiment
    results: dict[str, Any]
    loggers: list[Logger] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return Path(self.cfg.run_dir)

    @property
    def task(self) -> Any:
        return self.experiment.module.task

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the one of its processes that prints and writes."""
        return self.experiment.world.rank == 0

    def prepare(self) -> None:
        """What needs no training: yardsticks and loggers."""
        if not self.is_rank_zero:
            self.loggers.append(DummyLogger())  # none at all is an error of the callback that logs the learning rate
            return
        self.results |= self.experiment.data.reference_losses() | self.experiment.module.reference_losses()
        self.loggers += start_loggers(self.cfg, self.folder, self.task)


def run(cfg: DictConfig, quiet: bool = False) -> None:
    """Train, test the best checkpoint, write the run folder and, unless quiet, print what came out.

    Raises:
        ConfigError: the configuration cannot work.
        KeyboardInterrupt: after Ctrl-C, once the last checkpoint and results.json are written.
    """
    with started(cfg) as run:
        talks = run.is_rank_zero and not quiet
        if talks:
            print(describe_run(run.results, run.task), flush=True)
        with processes(run.experiment.world, run.folder / "config.yaml"):
            run.prepare()
            trainer = build(cfg, "trainer", logger=run.loggers, callbacks=run.experiment.callbacks)
            if run.experiment.module.model.fitted_by_counting:
                estimate(run, trainer)
            elif run.experiment.module.model.num_parameters:
                fit(run, trainer)
            test(run, trainer)
    if talks:
        print_results(run)


@contextmanager
def started(cfg: DictConfig) -> Iterator[Run]:
    """A run with its folder, whose results.json says how it ended, whichever way that is.

    The folder is written by the first of its processes only.
    """
    if cfg.sweep is None and not is_follower():
        check_free(cfg.run_dir, "run_dir")
    seed_everything(cfg.seed, verbose=False)
    experiment = assemble(cfg)
    module = experiment.module
    run = Run(cfg, experiment, run_folder.header(cfg, module.task, module.model, module.caveat))
    if not run.is_rank_zero:
        if experiment.world.to_start:  # on another machine, in a folder that is thrown away
            OmegaConf.save(cfg, run.folder / "config.yaml", resolve=True)
        yield run
        return
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("run_dir", run.folder, f"cannot be made: {error.strerror}") from error
    if cfg.sweep is not None:
        clear(cfg, experiment.checkpoint)
    run_folder.replace_text(run.folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    module.save_task(run.folder)
    results, beginning = run.results, time.perf_counter()
    try:
        yield run
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns the one into the other
        results["status"] = "interrupted"
        raise KeyboardInterrupt from stop
    except Exception as error:
        results |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        results["seconds"]["total"] = time.perf_counter() - beginning
        # A test gives the callbacks the state that they had at the checkpoint it loads.
        results |= {**experiment.history.results(), **results}
        run_folder.write_results(run.folder, results)
        for logger in run.loggers[1:]:
            close_run(logger, results, run.rows)


@rank_zero_only
def clear(cfg: DictConfig, checkpoint: Path | None) -> None:
    """Take out of a run's folder what an attempt has left that came to no end, and that this one does again."""
    folder = Path(cfg.run_dir)
    (folder / "results.json").unlink(missing_ok=True)
    (folder / "completions.csv").unlink(missing_ok=True)
    if checkpoint == last_checkpoint(folder):
        metrics_file.truncate(folder / "metrics.csv", None if has_ended(cfg, checkpoint) else logged_rows(checkpoint))
    else:
        (folder / "metrics.csv").unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def fit(run: Run, trainer: Trainer) -> None:
    """Train."""
    experiment, checkpoints = run.experiment, run.folder / "checkpoints"
    if run.is_rank_zero and experiment.checkpoint not in (None, last_checkpoint(run.folder)):
        best = experiment.checkpoint.with_name("best.ckpt")
        if best.is_file():
            checkpoints.mkdir()
            shutil.copy(best, checkpoints)
    keep_freed_memory()
    beginning = time.perf_counter()
    with limited(training_threads(experiment)):
        trainer.fit(experiment.module, experiment.data, ckpt_path=experiment.checkpoint, weights_only=True)
    run.results["seconds"]["fit"] = time.perf_counter() - beginning
    if experiment.checkpoint is not None and has_ended(run.cfg, experiment.checkpoint):
        epoch = load(experiment.checkpoint, "meta")["epoch"]
        trainer.fit_loop.load_state_dict(end_of_training(trainer, epoch))


def estimate(run: Run, trainer: Trainer) -> None:
    """Have the model made from the data at once, and validate what has come of it."""
    module, data = run.experiment.module, run.experiment.data
    beginning = time.perf_counter()
    module.model.estimate(data.train_dataloader(), data.val_dataloader(), data.carry_state)
    run.results["seconds"]["fit"] = time.perf_counter() - beginning
    trainer.validate(module, data, verbose=False)
    run.experiment.history.record(trainer, module)
    trainer.save_checkpoint(run.folder / "checkpoints" / "best.ckpt")


def training_threads(experiment: Experiment, seeds: int = 1) -> int:
    """Threads that a training step is worth, with so many seeds' weights at once."""
    tokens = experiment.data.tokens_at_once / experiment.world.size
    return threads_for(seeds * multiply_adds(experiment.module.model, tokens))


def test(run: Run, trainer: Trainer) -> None:
    """Fill the results in, from the best checkpoint if the run has trained."""
    module, data, history = run.experiment.module, run.experiment.data, run.experiment.history
    # A training that ends before its first validation has no best.
    candidates = [run.folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    checkpoint = trainer.strategy.broadcast(next(filter(Path.is_file, candidates), None))
    run.results |= history.results()
    run.results["tested"] = checkpoint and checkpoint.stem
    diverged = history.diverged  # the test's checkpoint brings another history
    trainer.test(module, data, checkpoint, weights_only=True, verbose=False)
    if not run.is_rank_zero:
        return
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    run.results["test"] = {name: value for name, value in figures.items() if name.startswith("Test/")}
    run.rows += module.completion_rows()
    run_folder.write_rows(run.folder / "completions.csv", run.rows)
    lost = diverged or not math.isfinite(run.results["test"]["Test/objective"])
    run.results["status"] = "diverged" if lost else "finished"
