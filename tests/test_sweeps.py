"""Sweeps: that the command which began one goes on with it, whatever stopped it, and what each launcher makes of it."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import environment, read_results
from lightning.pytorch import Callback

SIZES = ["model.dim_model=4", "model.num_heads=2", "model.num_decoder_layers=1", "model.dim_feedforward=8"]
SHORT = [
    "grammar=L1", "data.max_length=8", "data.num_train=48", "data.num_val=16", "data.num_test=16", "data.batch_size=10",
    "trainer.max_steps=20", "trainer.val_check_interval=6", "trainer.log_every_n_steps=1", "decoding.max_new_tokens=4",
    "callbacks=dynamics", "callbacks.dynamics.every_n_steps=3", "callbacks.dynamics.max_length=3",
]  # fmt: skip
TINY = [*SHORT, "logger=csv", "model.embedding_dim=4", "model.hidden_dim=4"]
SWEEP = ["-m", *TINY, "model=lstm,mingru", "seed=0,1"]
RUNS = Path("runs", "sweeps", "default")


class FailsOnce(Callback):
    """Raises in a hook at a step, the first time that it comes there."""

    def __init__(self, hook: str, step: int, seed: int = 0):
        setattr(self, hook, self.fail)
        self.step, self.seed = step, seed

    def fail(self, trainer, *_) -> None:
        if trainer.global_step == self.step and torch.initial_seed() == self.seed and not Path("failed").exists():
            Path("failed").touch()
            raise RuntimeError("out of luck\nfor once")


def runs(folder):
    """What a sweep leaves that has to be the same: by run, without where it lies and how long it took."""
    found = {}
    for path in sorted((folder / RUNS).glob("*/results.json")):
        results = read_results(path.parent)
        figures = {key: results[key] for key in ("status", "tested", "test", "at_best_validation", "over_training")}
        texts = {name: (path.parent / name).read_text() for name in ("metrics.csv", "completions.csv")}
        found[path.parent.name] = {**figures, **texts}
        assert {file.name for file in (path.parent / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    return found


def start(folder, *arguments):
    command = [sys.executable, "-m", "rule_extrapolation.runner", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(folder), **pipes)


def test_a_killed_sweep_is_continued_by_the_same_command(cli, tmp_path):
    killed = tmp_path / "killed"
    killed.mkdir()
    process = start(killed, *SWEEP)
    lines = []
    for line in process.stdout:
        lines += [line] if line.startswith("step 12/") else []
        if len(lines) == 2:  # in the second run, behind its first checkpoint
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    statuses = [(path / "results.json").is_file() for path in sorted((killed / RUNS).glob("*/"))]
    assert statuses == [True, False]

    process = start(killed, *SWEEP)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert out.count("Skipped, it has finished: ") == 1
    assert "Sweep default: 3 finished, 1 skipped, 0 failed. Run folders: runs/sweeps/default" in out
    assert "step 6/" in out.split("on L1")[-1]  # the runs that had not begun start at the beginning

    assert cli(*SWEEP)[0] == 0
    expected = runs(tmp_path)
    assert len(expected) == 4
    assert runs(killed) == expected


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_end", 2),  # before there is a checkpoint
        ("on_train_batch_start", 9),
        ("on_train_batch_end", 12),  # with a validation due
        ("on_validation_start", 12),
        ("on_validation_epoch_end", 18),
        ("on_train_batch_end", 20),
        ("on_train_end", 20),
        ("on_test_epoch_end", 20),
    ],
)
def test_a_failed_run_is_tried_again_from_its_checkpoint(cli, tmp_path, hook, step):
    sweep = ["-m", *TINY, "model=mingru", "seed=0,1", "+callbacks.fails._target_=test_sweeps.FailsOnce"]
    sweep += [f"+callbacks.fails.hook={hook}", f"+callbacks.fails.step={step}"]
    status, out, err = cli(*sweep)
    assert status == 1
    assert "Sweep default: 1 finished, 0 skipped, 1 failed" in out
    assert err.splitlines()[-2].endswith(": RuntimeError: out of luck")
    [error] = tmp_path.glob("runs/sweeps/default/*/error.txt")
    assert "Traceback" in error.read_text()
    status, out, err = cli(*sweep)
    assert (status, err) == (0, "")
    assert "Sweep default: 1 finished, 1 skipped, 0 failed" in out
    assert out.count("step 6/") == (step <= 6)
    assert not error.exists()
    mended = runs(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    assert cli(*sweep)[0] == 0
    assert mended == runs(tmp_path)
