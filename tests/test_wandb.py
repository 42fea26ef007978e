"""Real W&B runs: they log offline in each case that requires it, and are complete when read back from their files."""

from __future__ import annotations

import json
import os
import runpy
import shutil
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
from lightning.pytorch import Callback
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
    logger.log_tables({"completions": [{"prompt": "a", "completion": "ab"}, {"prompt": "aa", "completion": "aabb"}]})
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
    """A server that starts runs while ``answers`` is true, and otherwise rejects every request. Once ``hangs`` is set,
    it answers none."""

    answers = False
    hangs = threading.Event()

    def do_HEAD(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        if self.hangs.is_set():
            time.sleep(100)
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


def kill_process() -> None:
    """Kill W&B's process, which this one has started, as the system does when memory is short."""
    import wandb

    process = wandb.setup().ensure_service()._proc._process
    process.kill()
    process.wait()


@pytest.mark.parametrize("closed", [False, True])
def test_without_its_process_logging_is_given_up(
    closed: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = start(tmp_path / "1")
    if closed:
        first.close()
    kill_process()
    if not closed:
        for step in range(100):
            first.log_metrics({"loss": 1.0}, step=step)
        first.experiment.log({"by a callback": 1.0})
        first.log_tables({"completions": [{"prompt": "a"}]})
        first.log_summary({"accuracy": 0.5})
        first.close()
    second = start(tmp_path / "2")
    second.log_metrics({"loss": 2.0}, step=1)
    second.close()
    assert column(read(tmp_path / "2", second), "loss") == [(1, 2.0)]
    out, err = capfd.readouterr()
    assert err == ""
    lines = [line for line in out.splitlines() if "logging offline" not in line]
    assert len(lines) == (not closed)
    assert all(line.startswith("W&B: logging is given up, only metrics.csv goes on: ") for line in lines)


class KillsWandb(Callback):
    """Kills W&B's process at a step."""

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == 20:
            kill_process()


def test_a_run_goes_on_without_the_process(cli, tmp_path: Path) -> None:
    overrides = [override for override in SHORT if not override.startswith(("logger=", "trainer.max_steps="))]
    overrides += ["trainer.max_steps=30", "trainer.val_check_interval=15", "hydra.run.dir=r"]
    status, out, err = cli(*overrides, "+callbacks.kills._target_=test_wandb.KillsWandb")
    assert (status, err) == (0, "")
    assert out.count("W&B: ") == 2 and out.count("logging is given up") == 1
    assert read_results(tmp_path / "r")["status"] == "finished"
    rows = read_metrics(tmp_path / "r")
    assert [row["step"] for row in rows if "Train/loss" in row] == [*range(30)]
    assert len([row for row in rows if "Val/loss" in row]) == 2


def test_without_a_process_to_start_there_is_only_metrics_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wandb.sdk.lib.service.service_process.get_core_path", lambda: shutil.which("false"))
    logger = start(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.close()
    out, err = capfd.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert out.startswith("W&B: its process fails, only metrics.csv is written: ")


@pytest.mark.parametrize("table", [False, True])
def test_online_until_the_server_is_gone(
    table: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ours, "FINISH_SECONDS", 1.0)
    monkeypatch.setattr(ours, "TABLES_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(Server, "answers", True)
        logger = start(tmp_path)
        server.shutdown()
    logger.log_metrics({"loss": 1.0}, step=1)
    if table:
        logger.log_tables({"completions": [{"prompt": "a"}]})
    logger.close()
    end_session()

    online, *left_out, upload = capfd.readouterr().out.splitlines()
    (folder,) = tmp_path.glob("wandb/run-*")
    assert online == f"W&B: logging to {logger.experiment.url}"
    assert left_out == ["W&B: without the tables completions: the server does not answer"] * table
    assert upload == f"W&B: the upload is not complete (complete it with: wandb sync {folder})"
    assert column(read_run(folder), "loss") == [(1, 1.0)]


@pytest.mark.slow
def test_a_server_that_hangs_costs_half_a_minute_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(Server, "answers", True)
    monkeypatch.setattr(Server, "hangs", hangs)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    logger = start(tmp_path)
    hangs.set()
    beginning = time.monotonic()
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.log_tables({name: [{"prompt": "a"}] for name in ("ID", "OOD", "SOS")})
    logger.log_summary({"accuracy": 0.5})
    logger.close()
    end_session()
    assert time.monotonic() - beginning < 30
    _, tables, upload = capfd.readouterr().out.splitlines()
    assert tables == "W&B: without the tables ID, OOD, SOS: the server does not answer"
    assert upload.startswith("W&B: the upload is not complete")
    (folder,) = tmp_path.glob("wandb/run-*")
    assert column(read_run(folder), "loss") == [(1, 1.0)]
    beginning = time.monotonic()
    start(tmp_path / "again").close()
    assert time.monotonic() - beginning < 30
    server.shutdown()


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
    logger.log_tables({"completions": [{"prompt": "a"}]})
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
