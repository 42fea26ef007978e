"""trainer=ddp: several processes do what one does, and leave what it leaves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CtrlC, environment, read_metrics, read_results
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Callback
from torch.testing import assert_close

from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.experiment.processes import VARIABLES
from rule_extrapolation.inference.decoding import Greedy, Sample
from rule_extrapolation.training.shard import Shard

# Batches of 9 and 1 rows, prompt sets of 127 and more: nothing is even.
SHORT = [
    "trainer.accelerator=cpu", "trainer.max_steps=40", "trainer.log_every_n_steps=3", "trainer.val_check_interval=10",
    "data.max_length=12", "data.num_train=37", "data.num_val=28", "data.num_test=19", "data.batch_size=9",
    "optimizer.lr=0.02", "scheduler=constant", "grammar=L1",
]  # fmt: skip
CSV = [*SHORT, "logger=csv"]
DDP = ["trainer=ddp", "trainer.devices=2"]


@pytest.fixture(autouse=True)
def environment_of_children(monkeypatch):
    for name, value in environment(os.environ["HOME"]).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], os.path.dirname(__file__)]))


def files(folder):
    """Names of wandb's files have the time in them."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "wandb" not in path.parts)


def assert_same_figures(one, other):
    metrics = [read_metrics(run) for run in (one, other)]
    assert [row.keys() for row in metrics[0]] == [row.keys() for row in metrics[1]]
    assert_close(*metrics, rtol=1e-4, atol=1e-5)
    results = [read_results(run) for run in (one, other)]
    for of_run in results:
        del of_run["seconds"]
    assert_close(*([of_run.pop(key) for key in ("test", "at_best_validation", "over_training")] for of_run in results))
    assert results[0] == results[1]
    assert (one / "completions.csv").read_text() == (other / "completions.csv").read_text()


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_two_processes_leave_what_one_leaves(cli, tmp_path):
    before = {name: os.environ.get(name) for name in VARIABLES}
    assert cli("hydra.run.dir=one", *CSV)[0] == 0
    status, out, err = cli("hydra.run.dir=two", *CSV, *DDP)
    assert (status, err) == (0, "")
    assert out.count("minlstm (") == out.count("step 10/40") == out.count("Run folder: two") == 1
    one, two = tmp_path / "one", tmp_path / "two"
    assert files(one) == files(two)
    assert_same_figures(one, two)
    assert 0 < read_results(two)["test"]["Test/OOD/rule_1_accuracy"] < 1
    assert_close(weights(one), weights(two), rtol=1e-3, atol=1e-4)
    assert {name: os.environ.get(name) for name in VARIABLES} == before and not torch.distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["model=linear", "model.embedding_dim=3", "grammar=L2"],  # PAD is left out of its loss
        ["training=oracle", "training.batch_size=7", "grammar=L3", "data.batch_size=5"],
        ["decoding=sample", "trainer.devices=3", "+trainer.accumulate_grad_batches=2"],
        ["callbacks=dynamics", "callbacks.early_stopping.patience=1", "+callbacks.early_stopping.min_delta=0.1"],
        ["model=oracle"],
    ],
    ids=["ignore_pad", "ood", "sample", "stops", "oracle"],
)
def test_more_of_it(cli, tmp_path, overrides):
    assert cli("hydra.run.dir=one", *CSV, *DDP, *overrides, "trainer.devices=1")[0] == 0
    assert cli("hydra.run.dir=two", *CSV, *DDP, *overrides)[0] == 0
    assert_same_figures(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_only_the_first_process_has_a_wandb_run(cli, tmp_path):
    assert cli("hydra.run.dir=two", *SHORT, *DDP)[0] == 0
    assert len(list(tmp_path.rglob("*run-*.wandb"))) == 1


class Interrupted(CtrlC):
    """Ctrl-C for one of the processes."""

    def __init__(self, rank: int, n: int, number: int = signal.SIGINT):
        super().__init__("train", n)
        self.rank, self.number = rank, number

    def count(self, stage: str) -> None:
        self.left -= stage == self.stage
        if stage == self.stage and self.left == 0:
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_rank == self.rank:
            self.count("train")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_ctrl_c_stops_all_at_one_step_and_the_run_can_go_on(cli, tmp_path, rank):
    overrides = [*CSV, *DDP, "model.dropout=0.3"]
    ctrl_c = [
        "+callbacks.ctrl_c._target_=test_ddp.Interrupted",
        f"+callbacks.ctrl_c.rank={rank}",
        "+callbacks.ctrl_c.n=13",
    ]
    assert cli("hydra.run.dir=cut", *overrides, *ctrl_c)[0] == 130
    cut = tmp_path / "cut"
    assert read_results(cut)["status"] == "interrupted"
    checkpoint = torch.load(cut / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 13
    states = checkpoint["rng_state"]
    assert len(states) == 2 and not torch.equal(*states)
    assert cli("hydra.run.dir=rest", f"resume={cut}", *overrides)[0] == 0
    assert cli("hydra.run.dir=whole", *overrides)[0] == 0
    assert read_results(tmp_path / "rest")["test"] == read_results(tmp_path / "whole")["test"]
    assert_close(weights(tmp_path / "rest"), weights(tmp_path / "whole"), rtol=0, atol=0)
    # And in as many processes as one likes.
    assert cli("hydra.run.dir=alone", f"resume={cut}", *overrides, "trainer.devices=1")[0] == 0


@pytest.mark.slow
def test_sigterm_stops_all(cli, tmp_path):
    term = ["+callbacks.term._target_=test_ddp.Interrupted", "+callbacks.term.rank=0", "+callbacks.term.n=13"]
    assert cli("hydra.run.dir=cut", *CSV, *DDP, *term, f"+callbacks.term.number={int(signal.SIGTERM)}")[0] == 130
    checkpoint = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 13


class FailsInOne(Callback):
    """Raises in the second process, the first time that a run comes to a step."""

    def __init__(self, step: int = 5):
        self.step = step

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_rank == 1 and trainer.global_step == self.step and not Path("failed").exists():
            Path("failed").touch()
            raise RuntimeError("out of luck")


@pytest.mark.slow
def test_one_that_fails_ends_the_run(cli, tmp_path):
    with pytest.raises(RuntimeError):
        cli("hydra.run.dir=run", *CSV, *DDP, "+callbacks.fails._target_=test_ddp.FailsInOne")
    assert read_results(tmp_path / "run")["status"] == "failed"


@pytest.mark.slow
def test_a_sweep_goes_on_in_as_many_processes(cli, tmp_path):
    fails = ["+callbacks.fails._target_=test_ddp.FailsInOne", "+callbacks.fails.step=25"]
    overrides = [*CSV, *DDP, "model.dropout=0.3", *fails]
    sweep = ["-m", *overrides, "seed=0,1"]
    status, out, _ = cli(*sweep)
    assert status == 1 and "Sweep default: 1 finished, 0 skipped, 1 failed" in out
    status, out, err = cli(*sweep)
    assert (status, err) == (0, "")
    assert "Sweep default: 1 finished, 1 skipped, 0 failed" in out
    assert "step 30/40" in out and "step 20/40" not in out
    assert cli("hydra.run.dir=whole", *overrides)[0] == 0
    [mended] = tmp_path.glob("runs/sweeps/default/*seed0*")
    assert files(mended) == sorted([*files(tmp_path / "whole"), ".lock"])
    for name in ("metrics.csv", "completions.csv"):
        assert (mended / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert read_results(mended)["test"] == read_results(tmp_path / "whole")["test"]


@pytest.mark.slow
def test_torchrun(tmp_path):
    """Its processes are all begun by the same command, in which the time is not the same."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "rule_extrapolation.runner"]

    def torchrun(*overrides):
        return subprocess.run([*command, *CSV, *DDP, *overrides], cwd=tmp_path, capture_output=True, text=True)

    ended = torchrun()
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Run folder: ") == 1
    [results] = tmp_path.rglob("results.json")
    assert len(list(tmp_path.rglob(".hydra"))) == len(list(results.parent.parent.iterdir())) == 1
    assert read_results(results.parent)["status"] == "finished"
    assert torchrun("model.hidden=3").stderr.count("error: model.hidden=3") == 1
    assert torchrun("seed=0,1", "-m").stderr.count("error: sweep=default: each of its runs starts its processes") == 1


@pytest.mark.slow
def test_two_machines(cli, tmp_path):
    """The same command on each, which start their processes themselves."""
    command = [sys.executable, "-m", "rule_extrapolation.runner", *CSV, *DDP, "trainer.num_nodes=2"]
    found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    options = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(command, env={**os.environ, **found, "NODE_RANK": rank}, **options) for rank in "01"]
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "Run folder: " in outputs[0] and not outputs[1]
    [results] = tmp_path.rglob("results.json")
    assert len(list(results.parent.parent.iterdir())) == 1
    assert cli("hydra.run.dir=one", *CSV)[0] == 0
    assert read_results(results.parent)["test"] == pytest.approx(read_results(tmp_path / "one")["test"], rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.batch_size=1"], "data.batch_size=1: its rows are divided over 2 processes; "),
        (["seeds=2"], "seeds=2: several processes take one run at a time; "),
        (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn: several processes need ddp"),
        (["sweep=many", "trainer.num_nodes=2", "-m"], "sweep=many: each of its runs starts its processes, on one "),
    ],
)
def test_what_cannot_be_divided_is_refused(cli, tmp_path, overrides, message):
    status, _, err = cli(*CSV, *DDP, *overrides)
    assert status == 2 and err.startswith(f"error: {message}") and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("rows", "size"), [(9, 2), (8, 4), (3, 5)])
def test_weighted_parts_make_the_whole(rows, size):
    """Of means over rows and over symbols, in value and gradient."""
    batch = torch.randint(3, 5, (rows, 7))
    batch[torch.arange(7) > torch.arange(rows)[:, None] % 6] = PAD
    scale = torch.tensor(2.0, requires_grad=True)

    def mean(part):
        kept = part != PAD
        return (scale**2 * part)[kept].mean(), kept.sum()

    whole, count = mean(batch)
    parts = []
    for rank in range(size):
        shard = Shard(rank, size)
        value, own_count = mean(shard.of(batch))
        parts.append(value * shard.weight(batch, own_count, count))
    assert_close(torch.stack(parts).mean(), whole)
    assert_close(*(torch.autograd.grad(of, scale) for of in (torch.stack(parts).mean(), whole)))


@pytest.mark.parametrize("decoder", [Greedy(9), Sample(9, seed=3)])
def test_prompts_complete_alike_whoever_completes_the_others(decoder):
    sizes = {"num_tokens": 5, "embedding_dim": 6, "hidden_dim": 6}
    torch.manual_seed(0)
    model = instantiate({"_target_": "rule_extrapolation.models.minlstm.MinLSTM", **sizes})
    prompts = torch.randint(3, 5, (11, 4))
    whole = decoder(model, prompts)
    for rank in range(3):
        own = decoder(model, prompts, rows=Shard(rank, 3).rows)
        assert torch.equal(own, whole[rank::3, : own.shape[1]])
        assert (whole[rank::3, own.shape[1] :] == PAD).all()


def test_a_model_that_depends_on_the_row_is_trained_in_one_process(cli):
    status, _, error = cli(*CSV, *DDP, "model=transformer", "model.positions=by_row")
    assert status == 2
    assert error == (
        "error: trainer.devices=2: each process would number its own rows, on which the model's logits depend; train "
        "it in one process\n"
    )
