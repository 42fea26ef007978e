"""What interrupted or broken runs leave is gone on with, or made anew; nothing else is lost, and nothing is wrong."""

import json
import os
import shutil
import signal
import subprocess

import pytest
import torch
from conftest import SHORT, read_metrics, read_results
from lightning.pytorch import Callback

from rule_extrapolation.cli import complete, evaluate, report
from rule_extrapolation.core.names import is_file_name
from rule_extrapolation.runs.run_folder import is_set_aside

RUN = [
    *SHORT, "grammar=L1", "model=mingru", "model.embedding_dim=4", "model.hidden_dim=4", "trainer.max_steps=4",
    "trainer.val_check_interval=2", "data.batch_size=8", "decoding.max_new_tokens=4",
]  # fmt: skip


class SignalsOnce(Callback):
    """Sends this process a signal in a hook at a step, the first time that a run comes there."""

    works_in_stack = True

    def __init__(self, hook: str, number: int, folder: str = "."):
        setattr(self, hook, self.signal)
        self.number, self.flag = number, os.path.join(folder, "signalled")

    def signal(self, trainer, *_) -> None:
        if trainer.global_step == 4 and not os.path.exists(self.flag):
            open(self.flag, "w").close()
            os.kill(os.getpid(), self.number)


def signals(hook, number=signal.SIGINT):
    callback = "+callbacks.signals"
    return [
        f"{callback}._target_=test_faults.SignalsOnce",
        f"{callback}.hook={hook}",
        f"{callback}.number={int(number)}",
    ]


def figures(folder):
    results = read_results(folder)
    return {key: results[key] for key in ("status", "tested", "test", "at_best_validation", "over_training")}


STOPS = [
    ("on_train_batch_end", signal.SIGINT), ("on_validation_batch_end", signal.SIGTERM),
    ("on_validation_end", signal.SIGINT), ("on_test_start", signal.SIGTERM),
]  # fmt: skip
MORE_HOOKS = ("on_validation_start", "on_validation_epoch_end", "on_test_end")
MORE_STOPS = [(hook, number) for hook in MORE_HOOKS for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.fixture
def whole(trained):
    """The same run, undisturbed."""
    return trained("grammar=L1", *RUN)


@pytest.mark.parametrize("hook, number", STOPS + [pytest.param(*stop, marks=pytest.mark.slow) for stop in MORE_STOPS])
def test_a_run_that_is_stopped_at_its_end_goes_on_to_the_same_figures(cli, tmp_path, whole, hook, number):
    """The same command with sweep=, and resume= without."""
    same = [*RUN, *signals(hook, number)]
    for first, more in ((["sweep=x", "hydra.run.dir=r"],) * 2, (["hydra.run.dir=r2"], ["resume=r2"])):
        (tmp_path / "signalled").unlink(missing_ok=True)
        assert cli(*same, *first)[0] == 130
        stopped = tmp_path / first[-1].partition("=")[2]
        assert read_results(stopped)["status"] == "interrupted"
        status, _, err = cli(*same, "hydra.run.dir=rest", *more)
        assert (status, err) == (0, "")
        assert figures(tmp_path / ("r" if first is more else "rest")) == figures(whole)
    steps = [[row["step"] for row in read_metrics(run) if "Val/loss" in row] for run in (whole, tmp_path / "r")]
    assert steps == [[1, 3], [1, 3]]
    assert (tmp_path / "r" / "completions.csv").read_text() == (whole / "completions.csv").read_text()


def test_a_finished_run_is_not_resumed(cli, whole):
    status, _, err = cli(*RUN, f"resume={whole}", "hydra.run.dir=again")
    assert status == 2 and "already trained for 4; increase it" in err


def test_seeds_in_one_pass_make_up_for_their_last_validation(cli, tmp_path):
    """Trained as one until they were stopped, and side by side afterwards."""
    same = [*RUN, "seeds=2", "sweep=x", "hydra.run.dir=r"]
    stops = [*signals("on_validation_batch_end"), f"+callbacks.signals.folder={tmp_path}"]
    assert cli(*same, *stops)[0] == 130
    for seed in (0, 1):
        checkpoint = torch.load(tmp_path / "r" / f"seed{seed}" / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 4
        assert checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["validation"] == "due"


def test_results_that_cannot_be_read(cli, call, tmp_path, whole):
    assert cli(*RUN, "sweep=x", "hydra.run.dir=r")[0] == 0
    for number, content in enumerate(["{}", '{"status": "fini', "[]", "[1]", ""]):
        (tmp_path / "r" / "results.json").write_text(content)
        for main in (evaluate.main, complete.main):
            status, _, err = call(main, "run=r", *(["prompt=a"] if main is complete.main else []))
            assert status == 2 and err.count("\n") == 1 and "results.json" in err and "Traceback" not in err
        if content in ("{}", ""):
            status, out, err = cli(*RUN, "sweep=x", "hydra.run.dir=r")
            assert (status, err) == (0, "")
            assert "Made anew, since its results.json cannot be read: " in out
            assert figures(tmp_path / "r") == figures(whole)
            aside = tmp_path / f"r.broken{1 if number == 0 else 2}"
            assert (aside / "results.json").read_text() == content


SLOW_FAULTS = [pytest.param(fault, marks=pytest.mark.slow) for fault in ("half", "garbage", "binary")]


@pytest.mark.parametrize("fault", ["empty", "best", *SLOW_FAULTS])
def test_a_broken_run_of_a_sweep_is_set_aside_and_made_anew(cli, call, tmp_path, fault):
    sweep = ["-m", *RUN, "seed=0,1", "sweep=x"]
    assert cli(*sweep)[0] == 0
    folder, _ = sorted(tmp_path.glob("runs/sweeps/x/*/"))
    expected = figures(folder)
    config, best = folder / "config.yaml", folder / "checkpoints" / "best.ckpt"
    if fault == "best":
        (folder / "results.json").unlink()
        best.write_bytes(best.read_bytes()[:500])
    else:
        whole = config.read_bytes()
        contents = {"empty": b"", "half": whole[: len(whole) // 2], "garbage": b"]: {", "binary": b"\xff\x00\xfe"}
        config.write_bytes(contents[fault])
    status, out, err = cli(*sweep)
    assert (status, err) == (0, "")
    assert out.count("Made anew, since its ") == 1
    assert "Sweep x: 1 finished, 1 skipped, 0 failed" in out
    assert figures(folder) == expected
    assert folder.with_name(f"{folder.name}.broken1").is_dir()
    assert "2 skipped" in cli(*sweep)[1]
    status, out, _ = call(report.main, "runs=runs/sweeps/x", f"out={tmp_path / 'out'}")
    assert status == 0 and ".broken1" not in out + (tmp_path / "out" / "tables" / "runs.csv").read_text()


def test_a_truncated_best_checkpoint_is_named_before_a_run_is_resumed(cli, tmp_path):
    assert cli(*RUN, "hydra.run.dir=first")[0] == 0
    best = tmp_path / "first" / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:500])
    more = [*RUN, "trainer.max_steps=6", "resume=first", "hydra.run.dir=rest"]
    status, _, err = cli(*more)
    assert status == 2 and err.count("\n") == 1
    assert "best.ckpt is not a checkpoint; delete it to go on" in err
    assert not (tmp_path / "rest").exists()
    best.unlink()
    assert cli(*more)[0] == 0


@pytest.fixture
def disk(tmp_path):
    """Sets how many bytes a disk, the folder "disk", can hold."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
    subprocess.run(["umount", "--lazy", folder], check=True)


# By the size of the disk, what it has no space for.
FULL = {"4k": "the run folder", "20k": "config.yaml", "28k": "metrics.csv", "44k": "best.ckpt", "92k": "last.ckpt"}
SLOW_FULL = ("4k", "28k", "92k")


@pytest.mark.parametrize(
    "size, file", [pytest.param(*item, marks=[pytest.mark.slow] * (item[0] in SLOW_FULL)) for item in FULL.items()]
)
def test_a_full_disk_is_said_in_one_line_and_the_run_goes_on_once_there_is_space(
    cli, disk, tmp_path, whole, size, file
):
    disk(size)
    command = [*RUN, "sweep=x", "hydra.run.dir=disk/r"]
    status, _, err = cli(*command)
    assert status == 1 and err.count("\n") == 1 and f"{file} cannot be written: No space left on device" in err
    assert not list(tmp_path.rglob("*.tmp"))
    disk("2m")
    status, _, err = cli(*command)
    assert (status, err) == (0, "")
    assert figures(tmp_path / "disk" / "r") == figures(whole)


def test_on_a_full_disk_the_other_runs_of_a_sweep_are_tried(cli, disk, tmp_path, whole):
    disk("60k")
    command = ["-m", *RUN, "seed=0,1,2", "sweep=x", "hydra.sweep.dir=disk"]
    status, out, err = cli(*command)
    assert status == 1 and "Sweep disk: 0 finished, 0 skipped, 3 failed" in out
    assert "Traceback" not in err and err.count("No space left on device") == 6  # of each run, when and at the end
    disk("4m")
    assert "Sweep disk: 3 finished" in cli(*command)[1]
    assert figures(next(tmp_path.glob("disk/*seed0*"))) == figures(whole)


def test_on_a_full_disk_an_evaluation_leaves_no_half_file(call, disk, tmp_path, whole, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "disk" / "r")
    disk(sum(-(-file.stat().st_size // 4096) * 4096 for file in tmp_path.rglob("*") if file.is_file()) + 4096)
    status, _, err = call(evaluate.main, "run=disk/r", "max_length_factor=0")
    assert status == 1 and err.count("\n") == 1 and "cannot be written: No space left on device" in err
    assert not list(tmp_path.rglob("*.tmp"))


def copy_of(run, folder):
    """What the report reads of a run."""
    folder.mkdir(parents=True)
    for file in ("config.yaml", "results.json", "metrics.csv", "completions.csv"):
        (folder / file).write_bytes((run / file).read_bytes())


def test_a_report_writes_nothing_outside_its_folder(whole, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["../../x", "/tmp/x", ".x", "a/b", "", "x" * 300, ".."]
    copy_of(whole, tmp_path / "in" / "runs" / "whole")
    for number, name in enumerate(names):
        assert not is_file_name(name)
        run = tmp_path / "in" / "runs" / f"other{number}"
        copy_of(whole, run)
        (run / "results.json").write_text(json.dumps({**read_results(run), "grammar": name}))
    before = set(tmp_path.rglob("*"))
    status, _, err = call(report.main, "runs=in/runs", "out=in/out")
    assert (status, err) == (0, "")
    assert all((tmp_path / "in" / "out") in [path, *path.parents] for path in {*tmp_path.rglob("*")} - before)
    # The empty name says nothing, and config.yaml has one.
    assert (tmp_path / "in" / "out" / "tables" / "runs.csv").read_text().count("becomes the name of a file") == 6


def test_a_report_names_runs_whose_files_are_lists(whole, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy_of(whole, tmp_path / "whole")
    for file in ("config.yaml", "results.json"):
        copy_of(whole, tmp_path / file)
        (tmp_path / file / file).write_text("[1, 2]")
    status, _, err = call(report.main, "runs=whole,config.yaml,results.json", "out=out")
    assert (status, err) == (0, "")
    assert (tmp_path / "out" / "tables" / "runs.csv").read_text().count("unreadable: ") == 2


def test_names_of_a_run_are_checked_before_it(cli, tmp_path):
    for setting in ("sweep=../x", "grammar.name=../x"):
        status, _, err = cli(*RUN, setting, "hydra.run.dir=r")
        assert status == 2 and "becomes the name of a file" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert is_set_aside("a.broken12") and not is_set_aside("a.broken") and not is_set_aside("broken1")
