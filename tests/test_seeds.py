"""seeds=: each seed leaves what it would leave alone."""

import re
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import ROOT, environment, read_metrics, read_results
from omegaconf import OmegaConf
from torch.utils._pytree import tree_leaves_with_path

from rule_extrapolation.reporting.terminal import figure

SHORT = [
    "logger=csv", "trainer.max_steps=6", "trainer.log_every_n_steps=1", "trainer.val_check_interval=2",
    "data.max_length=12", "data.num_train=24", "data.num_val=16", "data.num_test=16", "data.batch_size=10",
]  # fmt: skip
MINLSTM = ["model=minlstm", "model.embedding_dim=6", "model.hidden_dim=6"]
MINGRU = ["model=mingru", "model.embedding_dim=6", "model.hidden_dim=5", "model.norm=rms", "grammar=L1"]
LINEAR = ["model=linear", "model.embedding_dim=3", "grammar=L1", "optimizer=sgd"]
OF_FLOATS = {"rtol": 1e-4, "atol": 1e-5}


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def without_folder(path, folder):
    return path.read_text().replace(str(folder), "")


def assert_same_run(one, other):
    """Two run folders hold the same run, up to float rounding, the time that it took and where it lies."""
    assert files(one) == files(other)
    for name in ("config.yaml", ".hydra/config.yaml"):
        assert without_folder(one / name, one) == without_folder(other / name, other)
    overrides = [set(OmegaConf.load(run / ".hydra" / "overrides.yaml")) for run in (one, other)]
    assert overrides[0] == overrides[1]
    metrics = [read_metrics(run) for run in (one, other)]
    assert [row.keys() for row in metrics[0]] == [row.keys() for row in metrics[1]]
    torch.testing.assert_close(*metrics, **OF_FLOATS)
    results = [read_results(run) for run in (one, other)]
    seconds = [of_run.pop("seconds") for of_run in results]
    assert seconds[0].keys() == seconds[1].keys()
    assert list(results[0]) == list(results[1])
    for key in ("test", "at_best_validation", "over_training"):
        torch.testing.assert_close(*(of_run.pop(key) for of_run in results), **OF_FLOATS)
    assert results[0] == results[1]
    assert (one / "completions.csv").read_text() == (other / "completions.csv").read_text()
    for name in ("best.ckpt", "last.ckpt"):
        checkpoints = [torch.load(run / "checkpoints" / name, weights_only=True) for run in (one, other)]
        for checkpoint in checkpoints:
            for state in checkpoint["callbacks"].values():
                for key in [key for key in state if "path" in key or key in ("dirpath", "best_k_models")]:
                    state.pop(key)
        for (path, value), (_, expected) in zip(*map(tree_leaves_with_path, checkpoints), strict=True):
            if isinstance(value, (float, torch.Tensor)):
                torch.testing.assert_close(value, expected, **OF_FLOATS)
            else:
                assert value == expected, path


@pytest.mark.parametrize("overrides", [MINLSTM, MINGRU, LINEAR], ids=["minlstm", "mingru", "linear"])
def test_every_seed_leaves_what_it_leaves_alone(cli, tmp_path, overrides):
    status, out, err = cli("seeds=3", "seed=4", "hydra.run.dir=many", *SHORT, *overrides)
    assert (status, err) == (0, "")
    assert "seeds 4 to 6 together" in out
    for seed in (4, 5, 6):
        assert cli(f"seed={seed}", f"hydra.run.dir=alone{seed}", *SHORT, *overrides)[0] == 0
        assert_same_run(tmp_path / "many" / f"seed{seed}", tmp_path / f"alone{seed}")
    losses = {read_results(tmp_path / "many" / f"seed{seed}")["test"]["Test/loss"] for seed in (4, 5, 6)}
    assert len(losses) == 3
    assert [row for row in out.splitlines() if re.match(r"│ +5│", row)]
    assert "mean" in out and "std" in out
    if "grammar=L1" in overrides:
        results = read_results(tmp_path / "many" / "seed4")
        metrics = ["ID/finished_accuracy", *(f"ID/finished/rule_{n}_accuracy" for n in (1, 2)), "OOD/finished_accuracy"]
        metrics += [f"OOD/finished/{metric}_accuracy" for metric in ("rule_1", "rule_2_completion")]
        rows = {"4": {name: results["test"].get(f"Test/{name}") for name in metrics}}
        rows |= {"chance": results["chance_levels"], "stop at once": results["stop_at_once"]}
        for name, figures in rows.items():
            cells = "│ +".join(figure(figures[metric]) for metric in metrics)
            assert re.search(rf"│ +{name}│ +\S+│ +{cells}│", out)
        assert "Accuracies are over finished completions" in out


def test_each_seed_stops_where_it_would_alone(cli, tmp_path):
    overrides = [
        *MINLSTM,
        "grammar=L1",
        "optimizer.lr=0.3",
        "scheduler=constant",
        "callbacks.early_stopping.patience=1",
    ]
    overrides += ["trainer.max_steps=40", "trainer.log_every_n_steps=3"]
    assert cli("seeds=4", "hydra.run.dir=many", *SHORT, *overrides)[0] == 0
    ends = set()
    for seed in range(4):
        assert cli(f"seed={seed}", f"hydra.run.dir=alone{seed}", *SHORT, *overrides)[0] == 0
        alone, among = tmp_path / f"alone{seed}", tmp_path / "many" / f"seed{seed}"
        ends.add(torch.load(alone / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])
        assert_same_run(among, alone)
    assert len(ends) > 1 and min(ends) < 40


def test_one_of_them_can_be_resumed(cli, tmp_path):
    whole = [*SHORT, *MINGRU, "trainer.max_steps=9"]
    assert cli("seeds=2", "hydra.run.dir=many", *SHORT, *MINGRU)[0] == 0
    assert cli("seed=1", "hydra.run.dir=rest", f"resume={tmp_path / 'many' / 'seed1'}", *whole)[0] == 0
    assert cli("seed=1", "hydra.run.dir=alone", *whole)[0] == 0
    assert read_results(tmp_path / "rest")["test"] == pytest.approx(read_results(tmp_path / "alone")["test"], rel=1e-4)


@pytest.mark.parametrize("stage", ["train", "validation"])
def test_ctrl_c_leaves_a_checkpoint_of_each(cli, tmp_path, stage):
    ctrl_c = ["+callbacks.ctrl_c._target_=conftest.CtrlC", f"+callbacks.ctrl_c.stage={stage}", "+callbacks.ctrl_c.n=4"]
    status, _, _ = cli("seeds=3", "hydra.run.dir=many", *SHORT, *MINGRU, *ctrl_c)
    assert status == 130
    steps = set()
    for seed in range(3):
        folder = tmp_path / "many" / f"seed{seed}"
        assert read_results(folder)["status"] == "interrupted"
        steps.add(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])
    assert len(steps) == 1 and 0 < steps.pop() < 6


def test_seeds_that_cannot_share_a_step_run_side_by_side(cli, tmp_path, monkeypatch):
    overrides = [*SHORT, *MINLSTM, "model.dropout=0.5"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    status, out, err = cli("seeds=2", "hydra.run.dir=many", f"run_dir={tmp_path / 'many'}", *overrides)
    assert (status, err) == (0, "")
    assert "in parallel, each in its own process: each draws its own dropout" in out
    assert "seed 1  step 2/6" in out and re.search(r"│ +mean│", out)
    assert cli("seed=1", "hydra.run.dir=alone", *overrides)[0] == 0
    assert_same_run(tmp_path / "many" / "seed1", tmp_path / "alone")


@pytest.mark.parametrize("joins", [False, True])
def test_a_callback_of_the_users_has_its_own_trainer(cli, tmp_path, monkeypatch, joins):
    """Unless it says that it works in a stack."""
    code = f"""
        from lightning.pytorch.callbacks import Callback

        class Notes(Callback):
            works_in_stack = {joins}

            def on_train_end(self, trainer, pl_module):
                for logger in trainer.loggers:
                    logger.log_metrics({{"noted": trainer.global_step}}, trainer.global_step)
    """
    (tmp_path / "notes.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    status, out, err = cli("seeds=2", "hydra.run.dir=many", *SHORT, *MINGRU, "+callbacks.notes._target_=notes.Notes")
    assert (status, err) == (0, "")
    assert ("Notes may need a Trainer and gradients of its own" in out) != joins
    for seed in range(2):
        assert [row["noted"] for row in read_metrics(tmp_path / "many" / f"seed{seed}") if "noted" in row] == [6]
    sys.modules.pop("notes")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signals_stop_those_side_by_side(tmp_path, number):
    overrides = [*SHORT, *MINLSTM, "model.dropout=0.5", "trainer.max_steps=100000", "seeds=3", "hydra.run.dir=many"]
    command = [sys.executable, "-m", "rule_extrapolation.runner", *overrides]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "step 4/" in line:
            break
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == 130
    begun = sorted(tmp_path.glob("many/*"))
    assert begun
    for folder in begun:
        if (folder / "results.json").is_file():
            assert read_results(folder)["status"] == "interrupted"
    assert any((folder / "checkpoints" / "last.ckpt").is_file() for folder in begun)


def test_a_run_that_fails_beside_others_is_named(cli, tmp_path, monkeypatch):
    """The others come to their end."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    broken = ["+callbacks.broken._target_=conftest.FailsWithSeed", "+callbacks.broken.seed=1"]
    status, _, _ = cli("seeds=2", "hydra.run.dir=many", *SHORT, *MINLSTM, "model.dropout=0.1", *broken)
    assert "the runs of these seeds failed: 1;" in status
    assert [read_results(tmp_path / "many" / f"seed{seed}")["status"] for seed in range(2)] == ["finished", "failed"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seeds=0"], "error: seeds=0: must be greater than 0"),
        (["seeds=two"], "error: seeds=two: must be int or null"),
        (["seeds=2", "resume=there"], "error: seeds=2: resume= continues one run"),
        (["seeds=2", "seed=4294967295"], "must be from 0 to 2^32 - 1"),
    ],
)
def test_impossible_seeds_are_refused(cli, tmp_path, overrides, message):
    status, _, err = cli(*overrides)
    assert status == 2 and message in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_with_runs_is_left_alone(cli):
    assert cli("seeds=2", "hydra.run.dir=many", *SHORT, *MINLSTM)[0] == 0
    status, _, err = cli("seeds=2", "hydra.run.dir=many", *SHORT, *MINLSTM)
    assert status == 2 and "hydra.run.dir=many: already holds a run" in err
