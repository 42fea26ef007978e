"""One run, from its configuration to its run folder."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from rule_extrapolation import run_folder
from rule_extrapolation.config import build, check_arguments, naming_keys, recipe
from rule_extrapolation.errors import ConfigError, check_positive
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.reporting.terminal import describe_run, print_run
from rule_extrapolation.theory.chance import chance_levels
from rule_extrapolation.training.callbacks import History
from rule_extrapolation.training.module import RuleExtrapolation
from rule_extrapolation.training.wandb import close_run


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
    seed: int
    resume: str | None
    run_dir: str


@dataclass
class Experiment:
    data: LightningDataModule
    module: RuleExtrapolation
    callbacks: dict[str, Callback]
    checkpoint: Path | None
    """Where training goes on from."""


def quiet_lightning() -> None:
    """Leave out what Lightning says of things that are as they should be."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance\\(treespec, LeafSpec\\).* is deprecated",  # Lightning's own, of torch's
        "The number of training batches .* is smaller than the logging interval",  # metrics are logged by steps
        "Experiment logs directory .* exists and is not empty",  # Hydra's files; a former run's stop the command
    ):
        warnings.filterwarnings("ignore", message)


def assemble(cfg: DictConfig, device: str | None = None) -> Experiment:
    """Build everything that a run needs and that can refuse its configuration.

    Args:
        device: where the model is built; on "meta" it has no weights, for a check alone.

    Raises:
        ConfigError: naming the key, its value and what would work.
    """
    quiet_lightning()
    check_arguments(Settings, dict(cfg), "")
    if not 0 <= cfg.seed < 2**32:
        raise ConfigError("seed", cfg.seed, "must be from 0 to 2^32 - 1")
    checkpoint = find_checkpoint(cfg)
    data = build(cfg, "data", grammar=build(cfg, "grammar"))
    with torch.device(device or "cpu"):
        model = build(cfg, "model", num_tokens=data.grammar.num_tokens)
    decoder, optimizer, scheduler = (build(cfg, group) for group in ("decoding", "optimizer", "scheduler"))
    with naming_keys(cfg, "data"):
        module = RuleExtrapolation(model, data.grammar, optimizer, scheduler, decoder)
    with naming_keys(cfg, "optimizer"):
        check_positive(lr=cfg.optimizer.lr)
        parameters_optimizer = optimizer(model.parameters())
    with naming_keys(cfg, "scheduler"):
        scheduler(parameters_optimizer)
    if "_target_" in cfg.logger:
        recipe(cfg, "logger", given=("save_dir", "name", "config"))
    callbacks = {name: build(cfg, f"callbacks.{name}") for name, node in cfg.callbacks.items() if node is not None}
    if not cfg.trainer.get("enable_progress_bar", True):
        callbacks = {name: callback for name, callback in callbacks.items() if not isinstance(callback, ProgressBar)}
    build(cfg, "trainer", logger=False, callbacks=[])
    return Experiment(data, module, callbacks, checkpoint)


def find_checkpoint(cfg: DictConfig) -> Path | None:
    """The file that ``resume`` names, if it does: a .ckpt, or a run folder's last one.

    Raises:
        ConfigError: there is none, or it belongs to a run of another model, language, data or optimization.
    """
    if cfg.resume is None:
        return None
    path = Path(cfg.resume)
    checkpoint = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not checkpoint.is_file():
        raise ConfigError("resume", cfg.resume, f"there is no {checkpoint}; name a run folder or a .ckpt file")
    config = checkpoint.parent.parent / "config.yaml"
    if config.is_file():
        before = OmegaConf.load(config)
        if cfg.seed != before.seed:
            raise ConfigError("seed", cfg.seed, f"the run to resume has {before.seed}; set that")
        for group in ("grammar", "data", "model", "optimizer", "scheduler"):
            now = OmegaConf.to_container(cfg[group], resolve=True)
            for key, value in before[group].items():
                if now.get(key) != value:
                    raise ConfigError(f"{group}.{key}", now.get(key), f"the run to resume has {value}; set that")
    return checkpoint


def start_loggers(cfg: DictConfig, folder: Path, grammar: Grammar) -> list[Logger]:
    """metrics.csv, and what ``logger`` names besides."""
    loggers: list[Logger] = [CSVLogger(str(folder), name="", version="")]
    if "_target_" in cfg.logger:
        name = f"{grammar.name}-{cfg.model.name}-seed{cfg.seed}"
        config = OmegaConf.to_container(cfg, resolve=True)
        loggers.append(build(cfg, "logger", save_dir=str(folder), name=name, config=config))
    return loggers


def run(cfg: DictConfig) -> None:
    """Train, test the best checkpoint, write the run folder and print what came out.

    Raises:
        ConfigError: the configuration cannot work.
        KeyboardInterrupt: after Ctrl-C, once the last checkpoint and results.json are written.
    """
    folder = Path(cfg.run_dir)
    seed_everything(cfg.seed, verbose=False)
    experiment = assemble(cfg)
    data, module, callbacks = experiment.data, experiment.module, experiment.callbacks
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    results = run_folder.header(cfg, module.grammar, module.model)
    rows: list[dict[str, Any]] = []
    print(describe_run(results, module.grammar), flush=True)
    loggers = start_loggers(cfg, folder, module.grammar)
    trainer: Trainer = build(cfg, "trainer", logger=loggers, callbacks=list(callbacks.values()))
    started = time.perf_counter()
    try:
        trainer.fit(module, data, ckpt_path=experiment.checkpoint, weights_only=True)
        results["seconds"]["fit"] = time.perf_counter() - started
        checkpoints = folder / "checkpoints"
        # A training that ends before its first validation has no best.
        results["tested"] = "best" if (checkpoints / "best.ckpt").is_file() else "last"
        trainer.test(module, data, checkpoints / f"{results['tested']}.ckpt", weights_only=True, verbose=False)
        results["test"] = {
            name: value.item() for name, value in trainer.callback_metrics.items() if name[:5] == "Test/"
        }
        results["chance_levels"] = chance_levels(module.grammar, module.decoder.max_new_tokens)
        rows = run_folder.judged_rows(module.grammar, module.completions)
        run_folder.write_completions(folder, rows)
        results["status"] = "finished"
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns the one into the other
        results["status"] = "interrupted"
        raise KeyboardInterrupt from stop
    except Exception as error:
        results |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        results["seconds"]["total"] = time.perf_counter() - started
        for history in (callback for callback in callbacks.values() if isinstance(callback, History)):
            results |= {"at_best_validation": history.at_best, "over_training": history.over_training}
        run_folder.write_results(folder, results)
        for logger in loggers[1:]:
            close_run(logger, results, rows)
    print_run(Console(), module.grammar, results, rows, folder)
