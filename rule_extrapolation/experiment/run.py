"""One run, from its configuration to its run folder."""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from rule_extrapolation.config.building import build, build_optional
from rule_extrapolation.config.depth_and_width import set_depth_and_width
from rule_extrapolation.core.errors import ConfigError, WriteFailed
from rule_extrapolation.core.task import Task
from rule_extrapolation.core.threads import multiply_adds, threads_limited, useful_threads
from rule_extrapolation.experiment.assembling import Experiment, assemble
from rule_extrapolation.experiment.libraries import set_up_libraries
from rule_extrapolation.experiment.processes import is_follower, lock, processes
from rule_extrapolation.experiment.resuming import has_ended
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.ops.allocator import keep_freed_memory
from rule_extrapolation.reporting.console import plain_console
from rule_extrapolation.reporting.messages import messages_printed
from rule_extrapolation.reporting.terminal import describe_run, print_run
from rule_extrapolation.reporting.text import print_text_run
from rule_extrapolation.runs import run_folder
from rule_extrapolation.runs.checkpoints import best_checkpoint, last_checkpoint, load, logged_rows, tested_checkpoint
from rule_extrapolation.training.language_modeling import end_of_training
from rule_extrapolation.training.loggers import metrics_file
from rule_extrapolation.training.loggers.wandb import close_run
from rule_extrapolation.training.loops import use_loops


def print_results(run: Run) -> None:
    """Print a run's results, as suits what it was trained on."""
    show = print_text_run if run.task.kind == "text" else print_run
    show(plain_console(), run.task, run.results, run.rows, run.folder)


def start_loggers(cfg: DictConfig, folder: Path, task: Task) -> list[Logger]:
    """The logger of metrics.csv, and the one that ``logger`` names."""
    about = {
        "save_dir": str(folder),
        "name": f"{task.name}-{cfg.model.name}-seed{cfg.seed}",
        "config": OmegaConf.to_container(cfg, resolve=True),
        "run_tags": run_tags(cfg, task),
    }
    chosen = build_optional(cfg, "logger", **about)
    return [metrics_file.MetricsFile(str(folder)), *([chosen] if chosen else [])]


def run_tags(cfg: DictConfig, task: Task) -> dict[str, str]:
    """What people search for runs and group them by."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    names = {"language": task.name, "label": task.label, "architecture": cfg.model.name}
    names["experiment"] = choices.get("experiment")
    return {tag: name for tag, name in names.items() if name}


def build_trainer(cfg: DictConfig, loggers: Logger | list[Logger], callbacks: list[Callback]) -> Trainer:
    """The configured Trainer, which loses no validation."""
    trainer = build(cfg, "trainer", logger=loggers, callbacks=callbacks)
    use_loops(trainer)
    return trainer


@dataclass
class Run:
    """A run in progress, and what will be written about it."""

    cfg: DictConfig
    experiment: Experiment
    results: dict[str, Any]
    loggers: list[Logger] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return Path(self.cfg.run_dir)

    @property
    def task(self) -> Task:
        return self.experiment.module.task

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process prints and writes for all processes of the run."""
        return self.experiment.world.rank == 0

    def prepare(self) -> None:
        """Compute the reference losses and start the loggers, which needs no training."""
        if not self.is_rank_zero:
            self.loggers.append(DummyLogger())  # the callback that logs the learning rate needs one
            return
        self.results |= self.experiment.data.reference_losses() | self.experiment.module.reference_losses()
        self.loggers += start_loggers(self.cfg, self.folder, self.task)


def run(
    cfg: DictConfig, quiet: bool = False, grammar: Grammar | None = None, model: LanguageModel | None = None
) -> None:
    """Train, test the best checkpoint, write the run folder and, unless quiet, print the results.

    Args:
        grammar, model: objects that take the place of what the configuration describes.

    Raises:
        ConfigError: the configuration is invalid.
        KeyboardInterrupt: after Ctrl-C, once the last checkpoint and results.json are written.
    """
    cfg = set_depth_and_width(cfg)
    with messages_printed(quiet), started(cfg, grammar, model) as run:
        verbose = run.is_rank_zero and not quiet
        if verbose:
            print(describe_run(run.results, run.task), flush=True)
        with processes(run.experiment.world, run.folder / "config.yaml"):
            run.prepare()
            trainer = build_trainer(cfg, run.loggers, run.experiment.callbacks)
            if run.experiment.module.model.fitted_by_counting:
                fit_counts(run, trainer)
            elif run.experiment.module.model.num_parameters:
                fit(run, trainer)
            test(run, trainer)
    if verbose:
        print_results(run)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise a KeyboardInterrupt, as Ctrl-C does, so that the run folder says how the run ended."""
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():  # after an error, Lightning sets those of the training again
            signal.signal(number, handler)


@contextmanager
def started(cfg: DictConfig, grammar: Grammar | None = None, model: LanguageModel | None = None) -> Iterator[Run]:
    """A run with its folder, which is locked; results.json is written however the run ends, and says how.

    Only the first of several processes writes the folder.

    Raises:
        ConfigError: the configuration is invalid, or another process is at work in the folder.
    """
    if cfg.sweep is None and not is_follower():
        run_folder.check_free(cfg.run_dir, "run_dir")
    set_up_libraries()
    seed_everything(cfg.seed, verbose=False)
    experiment = assemble(cfg, grammar=grammar, model=model)
    module = experiment.module
    run = Run(cfg, experiment, run_folder.header(cfg, module.task, module.model, module.caveat))
    if not run.is_rank_zero:
        if experiment.world.to_start:  # on another machine, in a temporary folder
            OmegaConf.save(cfg, run.folder / "config.yaml", resolve=True)
        yield run
        return
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("run_dir", run.folder, f"cannot be made: {error.strerror}") from error
    with lock(run.folder):
        if cfg.sweep is None:
            run_folder.check_free(cfg.run_dir, "run_dir")  # which another process may have used in the meantime
        else:
            clear(cfg, experiment.checkpoint)
        with recorded(run):
            yield run


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Write config.yaml, and results.json however what is done inside ends."""
    run_folder.replace_text(run.folder / "config.yaml", OmegaConf.to_yaml(run.cfg, resolve=True))
    run.experiment.module.save_task(run.folder)
    results, beginning = run.results, time.perf_counter()
    try:
        with ended_by_sigterm():
            yield
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns a KeyboardInterrupt into a SystemExit
        results["status"] = "interrupted"
        raise KeyboardInterrupt from stop
    except Exception as error:
        reason = str(error) if isinstance(error, WriteFailed) else f"{type(error).__name__}: {error}"
        results |= {"status": "failed", "error": reason}
        raise
    finally:
        results["seconds"]["total"] = time.perf_counter() - beginning
        # Testing resets the callbacks to their state at the checkpoint: what test() has written takes precedence.
        results |= {**run.experiment.best_metrics.results(), **results}
        try:
            run_folder.write_results(run.folder, results)
        except WriteFailed:
            if results["status"] in run_folder.DONE:
                raise
            # Otherwise the run fails of something else, which is what to show.
        finally:
            for logger in run.loggers[1:]:
                close_run(logger, results, run.rows)


@rank_zero_only
def clear(cfg: DictConfig, checkpoint: Path | None) -> None:
    """Remove what an unfinished attempt has left in the run's folder, as far as this one repeats it."""
    folder = Path(cfg.run_dir)
    (folder / "results.json").unlink(missing_ok=True)
    (folder / "completions.csv").unlink(missing_ok=True)
    if checkpoint == last_checkpoint(folder):
        rows = None if has_ended(cfg, load(checkpoint, "meta")) else logged_rows(checkpoint)
        metrics_file.truncate(folder / "metrics.csv", rows)
    else:
        (folder / "metrics.csv").unlink(missing_ok=True)
        shutil.rmtree(last_checkpoint(folder).parent, ignore_errors=True)


def fit(run: Run, trainer: Trainer) -> None:
    """Train, from the checkpoint if there is one."""
    experiment = run.experiment
    checkpoint = experiment.checkpoint and load(experiment.checkpoint, "meta")
    ended = checkpoint is not None and has_ended(run.cfg, checkpoint)
    if run.is_rank_zero and experiment.checkpoint not in (None, last_checkpoint(run.folder)):
        last_checkpoint(run.folder).parent.mkdir()
        best = experiment.checkpoint.with_name(best_checkpoint(run.folder).name)
        if best.is_file():
            shutil.copy(best, best_checkpoint(run.folder))
        if ended:  # and no other one will be written
            shutil.copy(experiment.checkpoint, last_checkpoint(run.folder))
    keep_freed_memory()
    beginning = time.perf_counter()
    with threads_limited(training_threads(experiment)):
        trainer.fit(experiment.module, experiment.data, ckpt_path=experiment.checkpoint, weights_only=True)
    run.results["seconds"]["fit"] = time.perf_counter() - beginning
    if ended:
        trainer.fit_loop.load_state_dict(end_of_training(trainer, checkpoint["epoch"]))


def fit_counts(run: Run, trainer: Trainer) -> None:
    """Fit a model that counts instead of taking gradient steps, and validate it."""
    module, data = run.experiment.module, run.experiment.data
    beginning = time.perf_counter()
    module.model.fit_counts(data.train_dataloader(), data.val_dataloader(), data.carry_state)
    run.results["seconds"]["fit"] = time.perf_counter() - beginning
    trainer.validate(module, data, verbose=False)
    run.experiment.best_metrics.record(trainer, module)
    trainer.save_checkpoint(best_checkpoint(run.folder))


def training_threads(experiment: Experiment, seeds: int = 1) -> int:
    """How many threads a training step can use, with the weights of that many seeds stacked."""
    tokens = experiment.data.tokens_at_once / experiment.world.size
    return useful_threads(seeds * multiply_adds(experiment.module.model, tokens))


def test(run: Run, trainer: Trainer) -> None:
    """Test the best checkpoint, if the run has trained, and fill in the results."""
    module, data, history = run.experiment.module, run.experiment.data, run.experiment.best_metrics
    checkpoint = trainer.strategy.broadcast(tested_checkpoint(run.folder))
    run.results |= history.results()
    run.results["tested"] = checkpoint and checkpoint.stem
    diverged = history.diverged  # testing loads the state of the best checkpoint
    trainer.test(module, data, checkpoint, weights_only=True, verbose=False)
    if not run.is_rank_zero:
        return
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    run.results["test"] = {name: value for name, value in figures.items() if name.startswith("Test/")}
    run.rows += module.completion_rows()
    if run.rows:  # a model that has diverged completes nothing
        run_folder.write_rows(run.folder / "completions.csv", run.rows)
    has_diverged = diverged or not math.isfinite(run.results["test"]["Test/objective"])
    run.results["status"] = "diverged" if has_diverged else "finished"
