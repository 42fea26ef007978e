"""trainer.fit on the default run, with logging and checkpoints, compared with a bare loop over the same data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from benchmarks.comparison import REPEATS, Comparison
from benchmarks.table import run
from rule_extrapolation.config.building import build
from rule_extrapolation.config.composing import CONF_DIR, register
from rule_extrapolation.core.threads import threads_limited
from rule_extrapolation.experiment.assembling import Experiment, assemble
from rule_extrapolation.experiment.libraries import set_up_libraries
from rule_extrapolation.experiment.run import start_loggers, training_threads
from rule_extrapolation.training.loops import use_loops


def bare_loop(experiment: Experiment, steps: int) -> None:
    module = experiment.module
    made = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    loader, done = experiment.data.train_dataloader(), 0
    while done < steps:
        for batch in loader:
            losses, _ = module.losses(batch)
            optimizer.zero_grad()
            losses["objective"].backward()
            optimizer.step()
            scheduler.step()
            done += 1
            if done == steps:
                break


def with_trainer(cfg: DictConfig) -> tuple[Trainer, Experiment]:
    experiment = assemble(cfg)
    loggers = start_loggers(cfg, Path(cfg.run_dir), experiment.module.grammar)
    # No validation: both sides would do the same work.
    trainer = build(cfg, "trainer", logger=loggers, callbacks=experiment.callbacks, limit_val_batches=0)
    use_loops(trainer)
    return trainer, experiment


def comparisons(steps: int = 500, repeats: int = REPEATS) -> Iterator[Comparison]:
    register()
    set_up_libraries()
    with tempfile.TemporaryDirectory() as folder:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose("config", [f"trainer.max_steps={steps}", f"run_dir={folder}", "logger=csv"])
        # Callbacks and counters serve one fit each. The extra ones are for warming up.
        number = repeats + 3
        fits, bare = iter([with_trainer(cfg) for _ in range(number)]), iter([assemble(cfg) for _ in range(number)])

        def fit() -> None:
            trainer, experiment = next(fits)
            with threads_limited(training_threads(experiment)):
                trainer.fit(experiment.module, experiment.data)

        def loop() -> None:
            experiment = next(bare)
            with threads_limited(training_threads(experiment)):
                bare_loop(experiment, steps)

        yield Comparison(
            name=f"trainer.fit on the default run, {steps} steps",
            ours=fit,
            peer=loop,
            peer_name="bare loop: forward, backward, step",
            at_least=1 / 1.3,
            repeats=repeats,
        )


if __name__ == "__main__":
    run(comparisons())
