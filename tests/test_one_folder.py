"""Two processes that are given the same run folder: the second is refused in one line, and the first is undisturbed."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import SHORT, config, environment, read_metrics, read_results

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.experiment import processes
from rule_extrapolation.experiment.run import run

LONG = [*(word for word in SHORT if "max_steps" not in word), "trainer.max_steps=100000", "hydra.run.dir=r"]
IN_USE = "is at work in it; wait until it has ended, or name another folder"


@pytest.fixture(autouse=True)
def not_waiting(monkeypatch):
    monkeypatch.setattr(processes, "SOON", 0.1)


@pytest.fixture
def start(tmp_path):
    """Start the command line in a process of its own."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
        command = [sys.executable, "-m", "rule_extrapolation.runner", *arguments]
        started.append(subprocess.Popen(command, env=environment(tmp_path), **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_until_it_trains(process, folder):
    while not list(folder.glob("**/metrics.csv")) and process.poll() is None:
        time.sleep(0.1)


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*.yaml")}


def interrupted(process, folder):
    """Whether a run has gone on undisturbed until it is interrupted now."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    steps = [row["step"] for row in read_metrics(folder) if "Train/loss" in row]
    assert process.returncode == 130 and "Traceback" not in out + err
    return read_results(folder)["status"] == "interrupted" and steps == [*range(len(steps))]


OTHERS = (["trainer.max_steps=3"], ["seeds=2"], ["sweep=x", "model=lstm"])


def test_the_second_is_refused(start, cli, tmp_path):
    first = start(*LONG)
    wait_until_it_trains(first, tmp_path / "r")
    before = content(tmp_path / "r")
    for other in OTHERS:
        status, out, err = cli(*LONG, *other)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: hydra.run.dir=r: ")
        settings = "holds a run with other settings; name another folder"
        assert (settings if "sweep=x" in other else f"process {first.pid} on {socket.gethostname()} {IN_USE}") in err
    assert content(tmp_path / "r") == before
    assert interrupted(first, tmp_path / "r")


@pytest.mark.slow
@pytest.mark.parametrize("same", [["seeds=2"], ["seeds=2", "sweep=x"], ["sweep=x"], ["resume=r0"], ["trainer=ddp"]])
def test_so_it_is_of_each_kind_of_run(start, cli, tmp_path, same):
    if "resume=r0" in same:
        assert cli(*LONG, "trainer.max_steps=2", "hydra.run.dir=r0")[0] == 0
    first = start(*LONG, *same)
    wait_until_it_trains(first, tmp_path / "r")
    status, _, err = cli(*LONG, *same)
    assert status == 2 and f"error: hydra.run.dir=r: process {first.pid} on " in err and err.count("\n") == 1
    assert first.poll() is None


@pytest.mark.slow
def test_of_two_at_once_one_is_refused(start, tmp_path):
    both = start(*LONG), start(*LONG, "model=lstm")
    wait_until_it_trains(both[0], tmp_path / "r")
    while all(process.poll() is None for process in both):
        time.sleep(0.1)
    first, second = sorted(both, key=lambda process: process.poll() is not None)
    out, err = second.communicate()
    assert (second.returncode, out, err.count("\n")) == (2, "", 1) and IN_USE in err
    assert interrupted(first, tmp_path / "r")


@pytest.mark.slow
def test_the_folder_of_a_process_that_was_killed_is_free(start, tmp_path):
    first = start(*LONG, "sweep=x")
    wait_until_it_trains(first, tmp_path / "r")
    first.kill()
    second = start(*LONG, "sweep=x")
    out = second.stdout.readline()
    assert "minlstm" in out and second.poll() is None


def test_from_python(tmp_path):
    held, done = threading.Event(), threading.Event()

    def work():
        with processes.lock(tmp_path):
            held.set()
            done.wait()

    threading.Thread(target=work, daemon=True).start()
    held.wait()
    with pytest.raises(ConfigError, match=rf"run_dir={tmp_path}: process \d+ on .* {IN_USE}"):
        run(config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    done.set()
