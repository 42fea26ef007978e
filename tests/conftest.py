from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# Before torch is imported, as the runner sets it.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch import Callback

from rule_extrapolation.cli.train import main
from rule_extrapolation.config.composing import CONF_DIR

ROOT = Path(__file__).parent.parent

# A run that takes about a second.
SHORT = [
    "logger=csv", "trainer.max_steps=4", "trainer.log_every_n_steps=1", "data.max_length=12",
    "data.num_train=32", "data.num_val=32", "data.num_test=32",
]  # fmt: skip


def config(run_dir: Path, *overrides: str):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", [*SHORT, f"run_dir={run_dir}", *overrides])


@pytest.fixture(autouse=True)
def wandb_session():
    """End the W&B session after monkeypatch, which may restore the address of a service that has ended."""
    yield
    if os.environ.get("WANDB_SERVICE"):
        import wandb

        wandb.teardown()
        os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture
def train(tmp_path):
    """Run one configuration in this process; returns its run folder."""
    from rule_extrapolation.experiment.run import run

    def train(*overrides: str, folder: str = "run") -> Path:
        (tmp_path / folder).mkdir()
        run(config(tmp_path / folder, *overrides))
        return tmp_path / folder

    return train


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run with these overrides, trained once for all tests that read it."""
    from rule_extrapolation.experiment.run import run

    folders: dict[tuple[str, ...], Path] = {}

    def trained(*overrides: str) -> Path:
        if overrides not in folders:
            folder = tmp_path_factory.mktemp("run")
            run(config(folder, *overrides))
            folders[overrides] = folder
        return folders[overrides]

    return trained


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command's main with arguments in this process; returns exit status, stdout and stderr."""

    def call(main: Callable[[], None], *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def cli(tmp_path, monkeypatch, call):
    """Run the command line in this process and an empty folder; returns exit status, stdout and stderr."""

    def cli(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        GlobalHydra.instance().clear()
        return call(main, *arguments)

    return cli


def environment(home: Path) -> dict[str, str]:
    """No key, no configuration of the user's; the package from this checkout, installed or not."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT)}


class CtrlC(Callback):
    """Sends this process what Ctrl-C sends, when it has come to the n-th batch of a stage."""

    works_in_stack = True

    def __init__(self, stage: str, n: int):
        self.stage, self.left = stage, n

    def count(self, stage: str) -> None:
        self.left -= stage == self.stage
        if stage == self.stage and self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)

    def on_train_batch_start(self, *_) -> None:
        self.count("train")

    def on_validation_batch_start(self, *_) -> None:
        self.count("validation")


class FailsWithSeed(Callback):
    """Raises in the second step of the run with that seed."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if trainer.global_step == 2 and torch.initial_seed() == self.seed:
            raise RuntimeError("out of luck")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    with open(folder / "metrics.csv") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def read_results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())
