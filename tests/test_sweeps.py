"""Sweeps: the same command continues them after any interruption, with each launcher."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, config, environment, read_results
from filelock import FileLock
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from rule_extrapolation.config.composing import CONF_DIR
from rule_extrapolation.core.threads import cores, threads_per_job
from rule_extrapolation.experiment.assembling import assemble

SHORT = [
    "grammar=L1", "data.max_length=8", "data.num_train=48", "data.num_val=16", "data.num_test=16", "data.batch_size=10",
    "trainer.max_steps=20", "trainer.val_check_interval=6", "trainer.log_every_n_steps=1", "decoding.max_new_tokens=4",
    "callbacks=dynamics", "callbacks.dynamics.every_n_steps=3", "callbacks.dynamics.max_length=3",
]  # fmt: skip
TINY = [*SHORT, "logger=csv", "model.embedding_dim=4", "model.hidden_dim=4"]
SWEEP = ["-m", *TINY, "model=lstm", "seed=0,1,2"]
RUNS = Path("runs", "sweeps", "default")


class FailsOnce(Callback):
    """Raises in a hook at a step, the first time that it comes there."""

    works_in_stack = True

    def __init__(self, hook: str, step: int, seed: int = 0):
        setattr(self, hook, self.fail)
        self.step, self.seed = step, seed

    def fail(self, trainer, *_) -> None:
        if trainer.global_step == self.step and torch.initial_seed() == self.seed and not Path("failed").exists():
            Path("failed").touch()
            raise RuntimeError("out of luck\nfor once")


class InterruptsOnce(Callback):
    """Sends what Ctrl-C sends, the first time that a run comes to a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.step - 1 and not Path("interrupted").exists():
            Path("interrupted").touch()
            os.kill(os.getpid(), signal.SIGINT)


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
    env = environment(folder) | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.Popen(command, cwd=folder, env=env, **pipes)


def test_a_killed_sweep_is_continued_by_the_same_command(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    process = start(killed, *SWEEP)
    lines = []
    for line in process.stdout:
        lines += [line] if line.startswith("step 12/") else []
        if len(lines) == 2:  # in the second run, after its first checkpoint
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    statuses = [(path / "results.json").is_file() for path in sorted((killed / RUNS).glob("*/"))]
    assert statuses == [True, False]

    process = start(killed, *SWEEP)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert out.count("Skipped (already finished): ") == 1
    assert "Sweep default: 2 finished, 1 skipped, 0 failed. Run folders: runs/sweeps/default" in out
    assert "step 6/" in out.split("on L1")[-1]  # the runs that had not begun start at the beginning

    # In a process of its own too: in this one, earlier tests have set the number of threads.
    process = start(whole, *SWEEP)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    expected = runs(whole)
    assert len(expected) == 3
    assert runs(killed) == expected


@pytest.mark.slow
def test_workers_of_a_killed_sweep_end_with_it(tmp_path):
    """Or they would train on beside the command that goes on with their runs."""
    sweep = [*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = start(tmp_path, *sweep)
    names = set()
    for line in process.stdout:
        if " step 12/" in line:
            names.add(line.split()[0])
        if len(names) == 2:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()  # until the workers have let go of the pipe too
    assert len(names) == 2
    process = start(tmp_path, *sweep)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert "Another process" not in out
    assert len(runs(tmp_path)) == 3


def test_what_diverged_is_named_and_what_is_too_large_is_refused(cli, tmp_path):
    overrides = ["model=mingru", "optimizer.lr=1e-3,1e30", "trainer.gradient_clip_val=null"]
    status, out, err = cli("-m", *TINY, *overrides)
    assert (status, err) == (0, "")
    assert "Sweep default: 1 finished, 0 skipped, 0 failed, 1 diverged" in out
    assert out.count("diverged, its loss is not finite: ") == 1
    # More weights than there is memory for, which is found before any job begins.
    status, out, err = cli("-m", *TINY, "model=lstm", "model.hidden_dim=8,4000000", "sweep=large")
    assert (status, out) == (2, "")
    assert err.startswith("error: model.hidden_dim=4000000: ") and "are available; use less\n" in err
    assert not (tmp_path / "runs" / "sweeps" / "large").exists()


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_end", 2),  # before there is a checkpoint
        pytest.param("on_train_batch_start", 9, marks=pytest.mark.slow),
        ("on_train_batch_end", 12),  # with a validation due
        pytest.param("on_validation_start", 12, marks=pytest.mark.slow),
        pytest.param("on_validation_epoch_end", 18, marks=pytest.mark.slow),
        pytest.param("on_train_batch_end", 20, marks=pytest.mark.slow),
        pytest.param("on_train_end", 20, marks=pytest.mark.slow),
        pytest.param("on_test_epoch_end", 20, marks=pytest.mark.slow),
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


def test_a_sweep_continues_after_ctrl_c(cli, tmp_path):
    sweep = ["-m", *TINY, "model=mingru", "seed=0,1", "trainer.log_every_n_steps=2"]
    ctrl_c = ["+callbacks.ctrl_c._target_=test_sweeps.InterruptsOnce", "+callbacks.ctrl_c.step=9"]
    status, out, err = cli(*sweep, *ctrl_c)
    assert status == 130
    assert "Sweep default: 0 finished, 0 skipped, 0 failed, 1 interrupted, 1 not started" in out
    assert err.splitlines()[0].endswith(": interrupted") and err.count("error:") == 1
    assert cli(*sweep, *ctrl_c)[0] == 0
    mended = runs(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    assert cli(*sweep, *ctrl_c)[0] == 0
    assert mended == runs(tmp_path)


def test_more_of_the_same_sweep_and_other_places_and_displays(cli):
    """What a run's results do not depend on does not make it another run."""
    assert cli("-m", *TINY, "model=mingru", "seed=0")[0] == 0
    other = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "threads=1"]
    status, out, _ = cli("-m", *TINY, "model=mingru", "seed=0,1,0", *other)
    assert status == 0
    assert "Sweep default: 1 finished, 1 skipped, 0 failed" in out
    status, out, _ = cli("-m", *TINY, "model=mingru", "seed=0", "optimizer.lr=1e-3")
    assert "Sweep default: 1 finished, 0 skipped, 0 failed" in out


def test_a_checkpoint_that_does_not_load_is_begun_anew(cli, tmp_path):
    sweep = ["-m", *TINY, "model=mingru", "seed=0"]
    assert cli(*sweep)[0] == 0
    expected = runs(tmp_path)
    [folder] = (tmp_path / RUNS).glob("*/")
    (folder / "results.json").unlink()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    status, out, _ = cli(*sweep)
    assert status == 0
    assert "step 6/20" in out
    assert runs(tmp_path) == expected


def test_a_run_that_another_process_is_at_is_left_to_it(cli, tmp_path):
    sweep = ["-m", *TINY, "model=mingru", "seed=0,1"]
    assert cli(*sweep)[0] == 0
    first, second = sorted((tmp_path / RUNS).glob("*/"))
    for folder in (first, second):
        (folder / "results.json").unlink()
    before = (first / "metrics.csv").read_text()
    with FileLock(first / ".lock"):
        status, out, err = cli(*sweep)
    assert status == 1
    assert f"Another process is running it: {first}" in out
    assert f"error: {first}: " in err and str(second) not in err
    assert (first / "metrics.csv").read_text() == before and (second / "results.json").is_file()


@pytest.mark.slow
def test_seeds_of_a_sweep_go_on_each_from_its_own_checkpoint(cli, tmp_path, monkeypatch):
    """Trained as one they fail as one; side by side they go on, with the same results up to float rounding."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    sweep = [part for part in ["-m", *TINY, "model=mingru", "seeds=2"] if "dynamics" not in part]
    fails = ["+callbacks.fails._target_=test_sweeps.FailsOnce", "+callbacks.fails.hook=on_train_batch_end"]
    fails += ["+callbacks.fails.step=9", "+callbacks.fails.seed=1"]
    status, out, err = cli(*sweep, *fails)
    assert status == 1
    assert "Sweep default: 0 finished, 0 skipped, 2 failed" in out
    status, out, err = cli(*sweep, *fails)
    assert (status, err) == (0, "")
    assert "each resumes from its own checkpoint" in out
    assert "Sweep default: 2 finished, 0 skipped, 0 failed" in out
    mended = [read_results(path.parent) for path in sorted(tmp_path.glob("runs/**/seed*/results.json"))]
    shutil.rmtree(tmp_path / "runs")
    assert cli(*sweep, *fails)[0] == 0
    whole = [read_results(path.parent) for path in sorted(tmp_path.glob("runs/**/seed*/results.json"))]
    assert [run["seed"] for run in whole] == [0, 1]
    for one, other in zip(mended, whole):
        assert one["test"] == pytest.approx(other["test"], rel=1e-4)
    assert "2 skipped" in cli(*sweep, *fails)[1]


def test_an_experiment_can_be_a_sweep(cli, tmp_path):
    """What is set on the command line wins over its choices."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nsweep: mine\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      model: lstm,mingru\n      seed: 0,1\n"
    )
    status, out, err = cli(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine", "seed=3", *TINY)
    assert (status, err) == (0, "")
    assert "Sweep mine: 2 finished, 0 skipped, 0 failed. Run folders: runs/sweeps/mine" in out
    found = [read_results(path.parent) for path in tmp_path.glob("runs/sweeps/mine/*/results.json")]
    assert {(run["model"], run["seed"]) for run in found} == {("lstm", 3), ("mingru", 3)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hydra.sweep.subdir=here", "seed=0,1"], "hydra.sweep.subdir=here: several jobs would share a folder"),
        (["threads=0"], "threads=0: must be greater than 0"),
        (["hydra/launcher=jobbib"], "hydra/launcher=jobbib: did you mean joblib?"),
        (["hparams_search=optuna", "model=oracle", "trainer.max_steps=2"], "model.search=null: nothing to search over"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(cli, tmp_path, overrides, message):
    status, out, err = cli("-m", "logger=csv", *overrides)
    assert (status, out) == (2, "")
    assert message in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        pytest.param(["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1"], marks=pytest.mark.slow),
        ["hydra/launcher=ray"],
    ],
    ids=["joblib", "submitit_local", "ray"],
)
def test_launchers(tmp_path, launcher):
    """One run fails; the other comes to its end, with its share of the threads."""
    if "hydra/launcher=ray" in launcher:
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    fails = ["+callbacks.fails._target_=conftest.FailsWithSeed", "+callbacks.fails.seed=1"]
    process = start(tmp_path, "-m", *TINY, "model=mingru", "seed=0,1", *fails, *launcher)
    out, _ = process.communicate()
    assert process.returncode == 1
    assert "Sweep default: 1 finished, 0 skipped, 1 failed" in out
    assert ": RuntimeError: out of luck" in out
    statuses = [read_results(path.parent)["status"] for path in tmp_path.glob("runs/sweeps/default/*/results.json")]
    assert sorted(statuses) == ["failed", "finished"]


class DiesWithSeed(Callback):
    """Ends the process of the run with that seed, as the system does when memory runs out."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == 2 and torch.initial_seed() == self.seed:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_dies_stops_no_other_run(tmp_path):
    dies = ["+callbacks.dies._target_=test_sweeps.DiesWithSeed", "+callbacks.dies.seed=1"]
    process = start(tmp_path, "-m", *TINY, "model=mingru", "seed=0,1,2,3", *dies, "hydra/launcher=joblib")
    out, _ = process.communicate()
    assert process.returncode == 1
    assert "Sweep default: 3 finished, 0 skipped, 1 failed" in out
    assert "TerminatedWorkerError" in out


def test_threads_are_shared():
    def of(**launcher):
        return threads_per_job(OmegaConf.create(launcher))

    assert of() is None
    assert of(n_jobs=-1) == 1
    assert of(n_jobs=1) == cores()
    assert of(n_jobs=2) == max(1, cores() // 2)
    assert of(cpus_per_task=3) == 3
    assert of(cpus_per_task=None) is None
    assert of(ray={"remote": {"num_cpus": 2}}) == 2


def test_a_search_goes_on_with_the_trials_it_had(cli, tmp_path):
    search = ["hparams_search=optuna", "sweep=search", *SHORT, "logger=csv", "model=mingru"]
    assert cli(*search, "hydra.sweeper.n_trials=2")[0] == 0
    status, out, err = cli(*search, "hydra.sweeper.n_trials=3")
    assert status == 0 and "error:" not in err
    assert "Sweep search: 1 finished, 2 skipped, 0 failed" in out
    found = [read_results(path.parent) for path in tmp_path.glob("runs/sweeps/search/*/results.json")]
    best = min(run["at_best_validation"]["Val/objective"] for run in found)
    assert len({run["num_parameters"] for run in found}) > 1
    assert f"Best of 3 trials, Val/objective {best:.4f}" in out
    [command] = re.findall(r"^    rule-extrapolation train (.*)$", out, re.MULTILINE)
    status, out, _ = cli(*shlex.split(command), "hydra.run.dir=alone")
    assert read_results(tmp_path / "alone")["at_best_validation"]["Val/objective"] == best


def test_every_architecture_has_ranges_that_work(tmp_path):
    """At both ends of each."""
    for path in sorted((CONF_DIR / "model").glob("*.yaml")):
        search = OmegaConf.load(path).get("search", {})
        assert search or path.stem in ("oracle", "normative")
        for pick in (0, -1):
            ends = []
            for key, choices in search.items():
                numbers = re.findall(r"[\d.]+(?:e-\d+)?", choices)
                ends.append(f"{key}={numbers[pick]}")
            assemble(config(tmp_path, f"model={path.stem}", *ends), device="meta")


def test_models_that_differ_in_size_are_named_before_any_run(cli):
    short = ["-m", *SHORT, "logger=csv", "trainer.max_steps=2", "callbacks=default", "model=lstm,mingru"]
    short = [word for word in short if not word.startswith("callbacks.")]
    status, out, _ = cli(*short, "model.hidden_dim=8", "sweep=apart")
    line = next(line for line in out.splitlines() if "differ in size" in line)
    assert status == 0 and re.fullmatch(
        r"baN: Models differ in size: (lstm|mingru) has [\d,]+ weights, (lstm|mingru) [\d,]+\. "
        "sizes=matched gives them about as many.",
        line,
    )
    assert out.index(line) < out.index("jobs to run")
    assert "differ in size" not in cli(*short, "sizes=matched", "sweep=alike")[1]
