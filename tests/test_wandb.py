"""Real W&B runs: they log offline in each case that requires it, and are complete when read back from their files."""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import SHORT, read_metrics, read_results
from offline_wandb import OfflineRun, read_run

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.reporting.messages import messages_printed
from rule_extrapolation.training.loggers import wandb as ours

CONFIG = {"model": {"name": "lstm", "sizes": [8, 16]}, "seed": 3, "note": None}
KEY = "0123456789" * 4
OTHERS = ("netrc", "http_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a W&B session of its own, without the key and the settings of the user who runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name.lower() in OTHERS]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # wandb_logger sets these; monkeypatch restores them.
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)
    with messages_printed():
        yield
    end_session()


def end_session() -> None:
    """Do what wandb does at the end of a process: only then has it written all that was logged."""
    import wandb

    wandb.teardown()


def start(folder: Path, **settings: Any) -> ours.WandbRun:
    return ours.wandb_logger(str(folder), "a run", CONFIG, project="grammars", **settings)


def read(folder: Path, logger: ours.WandbRun) -> OfflineRun:
    end_session()
    (run,) = folder.glob(f"wandb/offline-run-*-{logger.version}")
    return read_run(run)


def column(run: OfflineRun, name: str) -> list[tuple[int, Any]]:
    return [(row["trainer/global_step"], row[name]) for row in run.history if name in row]


def test_without_a_key_everything_is_in_the_offline_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = start(tmp_path, entity="us", group="a group", tags=["x", "y"])
    for step in range(3):
        logger.log_metrics({"Train/loss": 0.5 * step}, step=10 * step)
    logger.log_metrics({"Val/ID/rule_1_accuracy": 0.25}, step=20)
    logger.log_table("completions", columns=["prompt", "completion"], data=[["a", "ab"], ["aa", "aabb"]])
    logger.experiment.summary.update({"test": {"accuracy": 0.75}})
    logger.close(exit_code=1)
    end_session()

    (folder,) = tmp_path.glob("wandb/offline-run-*")
    out, err = capfd.readouterr()
    assert out == f"W&B: no API key, logging offline (upload with: wandb sync {folder})\n"
    assert err == ""
    run = read(tmp_path, logger)
    assert run.info == {
        "id": logger.version,
        "name": "a run",
        "project": "grammars",
        "entity": "us",
        "group": "a group",
        "tags": ["x", "y"],
        "exit_code": 1,
    }
    assert run.config.items() >= CONFIG.items()
    assert column(run, "Train/loss") == [(0, 0.0), (10, 0.5), (20, 1.0)]
    assert column(run, "Val/ID/rule_1_accuracy") == [(20, 0.25)]
    assert run.summary["test"] == {"accuracy": 0.75}
    assert run.summary["Train/loss"] == 1.0
    ((_, table),) = column(run, "completions")
    table = json.loads((folder / "files" / table["path"]).read_text())
    assert table == {"columns": ["prompt", "completion"], "data": [["a", "ab"], ["aa", "aabb"]]}


def test_a_service_that_has_ended_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SERVICE", f"3-1-unix-{tmp_path}/ended/socket")
    logger = start(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.close()
    assert column(read(tmp_path, logger), "loss") == [(1, 1.0)]


def test_two_runs_in_one_process(tmp_path: Path) -> None:
    first, second = start(tmp_path / "1"), start(tmp_path / "2")
    first.log_metrics({"loss": 1.0}, step=1)
    second.log_metrics({"loss": 2.0}, step=2)
    second.close()
    third = start(tmp_path / "3")
    third.log_metrics({"loss": 3.0}, step=3)
    third.close()
    first.close()

    loggers = [first, second, third]
    assert len({logger.version for logger in loggers}) == 3
    runs = [read(tmp_path / number, logger) for number, logger in zip("123", loggers)]
    assert [column(run, "loss") for run in runs] == [[(1, 1.0)], [(2, 2.0)], [(3, 3.0)]]


def test_a_multirun_logs_a_whole_run_for_each_job(cli, tmp_path: Path) -> None:
    overrides = [override for override in SHORT if override != "logger=csv"]
    status, out, _ = cli("-m", "seed=0,1", "model.hidden_dim=8", "sweep=widths", "logger.tags=[mine]", *overrides)
    end_session()
    assert status == 0
    assert out.count("W&B: no API key, logging offline") == 2
    folders = sorted(path.parent for path in tmp_path.rglob("results.json"))
    assert len(folders) == 2
    for seed, folder in enumerate(folders):
        (file,) = folder.glob("wandb/offline-run-*")
        run = read_run(file)
        for name in ("Train/loss", "Val/loss", "Val/kl", "Val/OOD/rule_1_accuracy", "Test/ID/rule_2_accuracy"):
            logged = [(row["step"], row[name]) for row in read_metrics(folder) if name in row]
            assert logged
            assert column(run, name) == [(step, pytest.approx(value)) for step, value in logged]
        assert run.config["seed"] == seed
        assert run.config["model"]["hidden_dim"] == 8
        assert run.config["grammar"]["name"] == run.config["language"] == "aNbN"
        assert (run.config["label"], run.config["architecture"]) == ("L3", "minlstm")
        assert run.info["name"] == f"aNbN-minlstm-seed{seed}"
        assert run.info["group"] == "widths"
        assert set(run.info["tags"]) == {"aNbN", "L3", "minlstm", "mine"}
        results = read_results(folder)
        assert run.summary["Test/loss"] == pytest.approx(results["test"]["Test/loss"])
        assert run.summary["optimal_loss"] == pytest.approx(results["optimal_loss"])
        for name in ("ID", "OOD", "SOS"):
            assert run.summary[f"completions/{name}"]["_type"] == "table-file"


def test_a_run_in_the_same_folder_continues_the_wandb_run(tmp_path: Path) -> None:
    first = start(tmp_path / "one", group="a sweep")
    first.log_metrics({"loss": 1.0}, step=1)
    first.close(exit_code=1)
    end_session()
    time.sleep(1)  # W&B names folders by the second
    second, other = start(tmp_path / "one", group="a sweep"), start(tmp_path / "two", group="a sweep")
    second.log_metrics({"loss": 0.5}, step=2)
    for logger in (second, other):
        logger.close()
    assert second.version == first.version != other.version
    end_session()
    runs = [read_run(folder) for folder in sorted((tmp_path / "one").glob("wandb/offline-run-*"))]
    assert [run.info["id"] for run in runs] == [first.version] * 2
    assert [column(run, "loss") for run in runs] == [[(1, 1.0)], [(2, 0.5)]]


def test_an_agents_run_has_the_agents_id_also_in_a_used_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path).close()
    end_session()
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep678")
    monkeypatch.setenv("WANDB_RUN_ID", "run12345")
    logger = start(tmp_path)
    logger.close()
    assert read(tmp_path, logger).info["id"] == "run12345"


def test_a_history_longer_than_a_block_of_the_file(tmp_path: Path) -> None:
    logger = start(tmp_path, offline=True)
    for step in range(1000):
        logger.log_metrics({"loss": step / 2, "note": "x" * (step % 300)}, step=step)
    logger.close()
    assert column(read(tmp_path, logger), "loss") == [(step, step / 2) for step in range(1000)]


class Server(BaseHTTPRequestHandler):
    """A server that starts runs while ``answers`` is true, and otherwise rejects every request."""

    answers = False

    def do_HEAD(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.answers:
            self.send_error(401)
            return
        project = {"id": "1", "name": "grammars", "entity": {"id": "2", "name": "us"}}
        bucket = {"id": "3", "name": request["variables"].get("name"), "displayName": "a run", "project": project}
        answer = json.dumps({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("table", [False, pytest.param(True, marks=pytest.mark.slow)])  # wandb waits for 19 s
def test_online_until_the_server_is_gone(
    table: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ours, "FINISH_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(Server, "answers", True)
        logger = start(tmp_path)
        server.shutdown()
    logger.log_metrics({"loss": 1.0}, step=1)
    if table:
        logger.log_table("completions", columns=["prompt"], data=[["a"]])
    logger.close()
    end_session()

    online, *left_out, upload = capfd.readouterr().out.splitlines()
    (folder,) = tmp_path.glob("wandb/run-*")
    assert online == f"W&B: logging to {logger.experiment.url}"
    assert [line.partition(": ")[2].partition(":")[0] for line in left_out] == ["table completions is omitted"] * table
    assert upload == f"W&B: the upload is not complete (complete it with: wandb sync {folder})"
    assert column(read_run(folder), "loss") == [(1, 1.0)]


@pytest.mark.parametrize("case", ["refuses", "never answers", "rejects the run", "malformed key"])
def test_offline_with_a_key(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ours, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(ours, "INIT_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = {"never answers": silent.getsockname()[1], "rejects the run": server.server_port}.get(case, 1)
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", "short" if case == "malformed key" else KEY)
        logger = start(tmp_path)
        server.shutdown()
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.close()

    line, *more = capfd.readouterr().out.splitlines()
    assert not more
    assert line.startswith(
        {
            "rejects the run": f"W&B: {url} fails: ",
            "malformed key": "W&B: WANDB_API_KEY invalid: ",
        }.get(case, f"W&B: {url} is unreachable, ")
    )
    (folder,) = tmp_path.glob("wandb/*run-*-*")  # the attempt to log online leaves no folder
    assert line.endswith(f", logging offline (upload with: wandb sync {folder})")
    assert column(read(tmp_path, logger), "loss") == [(1, 1.0)]


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_mode(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    logger = start(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.log_table("completions", columns=["prompt"], data=[["a"]])
    logger.experiment.summary.update({"accuracy": 1.0})
    logger.close()
    says = capfd.readouterr().out
    if mode == "disabled":
        assert says == "W&B: disabled by WANDB_MODE\n"
        assert not list(tmp_path.rglob("*run-*"))
    else:
        assert says.startswith("W&B: WANDB_MODE=offline, logging offline")
        assert read(tmp_path, logger).summary["accuracy"] == 1.0


def test_a_setting_that_wandb_rejects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Invalid project name 'a/b'") as error:
        ours.wandb_logger(str(tmp_path), "a run", CONFIG, project="a/b", offline=True)
    assert "\n" not in str(error.value)


def test_without_wandb_only_this_logger_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "wandb", None)
        module = runpy.run_path(ours.__file__)  # only the call needs wandb
        with pytest.raises(ConfigError) as error:
            module["wandb_logger"]("out", "a run", {}, "grammars")
    assert str(error.value) == "logger=wandb: needs the package: pip install wandb; or use logger=csv"
