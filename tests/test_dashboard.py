"""The W&B view as code: of metrics that runs really log, built without a network, and sent where there is a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import config, environment
from offline_wandb import read_run

from rule_extrapolation.cli import dashboard

# wandb-workspaces' own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither a key nor a setting of whoever runs the tests."""
    import wandb

    for variable in os.environ.keys() - environment(tmp_path).keys():
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    # What the command sets, so that it is unset again.
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield
    wandb.teardown()


def panels(view: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    sections = view["section"]["panelBankConfig"]["sections"]
    return [(section["name"], panel["config"]) for section in sections for panel in section["panels"]]


def metrics(panel: dict[str, Any]) -> list[str]:
    if "metrics" in panel:
        return panel["metrics"]
    return [panel[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis")]


def test_panels_show_what_runs_log(call, tmp_path, trained):
    status, out, err = call(dashboard.main, "entity=us", "out=view.json")
    assert (status, err) == (0, "")
    assert out == "Written: view.json\nW&B: no API key, not saved there\n"
    view = json.loads((tmp_path / "view.json").read_text())
    shown = {name for _, panel in panels(view) for name in metrics(panel)}
    assert len(panels(view)) == 21

    folder = trained("logger=wandb", "logger.offline=true")
    import wandb

    wandb.teardown()
    [file] = folder.glob("wandb/offline-run-*")
    run = read_run(file)
    logged = set(run.summary).union(*run.history)
    # Of a run so short, no completion ends.
    from rule_extrapolation.experiment.assembling import assemble

    names = assemble(config(tmp_path / "other"), device="meta").module.validation_names()
    assert shown - logged <= {name for name in names if "/finished/" in name}
    assert {panel["xAxis"] for section, panel in panels(view) if section != "Best checkpoint"} == {
        "trainer/global_step"
    }
    assert "trainer/global_step" in logged
    [runs] = view["section"]["runSets"]
    grouping = [key["name"].removesuffix(".value") for key in runs["grouping"]]
    assert [run.config[name] for name in grouping] == ["aNbN", "minlstm"]


def test_a_view_of_one_language(call, tmp_path):
    assert call(dashboard.main, "entity=us", "project=ours", "grammar=L1", "out=view.json")[0] == 0
    view = json.loads((tmp_path / "view.json").read_text())
    [runs] = view["section"]["runSets"]
    [condition] = runs["filters"]["filters"]
    assert (condition["key"]["name"], condition["op"], condition["value"]) == ("language", "=", "baN")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "entity=null: must be set"),
        (["entity=us"], "entity=us: no API key, so nothing can be saved; use out=<file> instead"),
        (["entity=us", "grammar=L9"], "grammar=L9: did you mean"),
        (["entity=us", "out=no/where.json"], "out=no/where.json: there is no such folder"),
    ],
)
def test_one_line_where_it_cannot_be(call, arguments, message):
    status, out, err = call(dashboard.main, *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"error: {message}")


class Server(BaseHTTPRequestHandler):
    """Takes views, as long as it does."""

    takes = True
    received: list[dict[str, Any]] = []

    def do_HEAD(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        saves = "upsertView" in request["query"]
        if saves:
            self.received.append(request["variables"])
        view = {"upsertView": {"view": {"id": "1", "name": "nw-abc-v"}, "inserted": True}}
        viewer = {"id": "2", "name": "us", "username": "us", "entity": "us", "email": "us@here", "teams": {"edges": []}}
        answer = {"data": view if saves else {"viewer": viewer}}
        if not self.takes:
            answer = {"errors": [{"message": "permission denied"}], "data": None}
        answer = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("takes", [True, False])
def test_with_a_key_it_is_saved(takes, call, monkeypatch):
    monkeypatch.setattr(Server, "takes", takes)
    monkeypatch.setattr(Server, "received", [])
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        status, out, err = call(dashboard.main, "entity=us")
        server.shutdown()
    if takes:
        assert (status, err) == (0, "")
        assert out == f"W&B: {url}/us/rule_extrapolation?nw=abc\n"
        [view] = Server.received
        assert (view["entityName"], view["projectName"]) == ("us", "rule_extrapolation")
        assert len(panels(json.loads(view["spec"]))) == 21
    else:
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert err.startswith("error: project=us/rule_extrapolation: W&B rejects the view: ")


def test_help_needs_no_torch(tmp_path):
    code = "import sys; sys.argv = ['dashboard', '--help']; from rule_extrapolation.cli.dashboard import main; main(); "
    code += "assert not {'torch', 'wandb'} & set(sys.modules)"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "entity=" in ended.stdout
