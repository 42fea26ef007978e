"""Each command line of malformed_inputs.yaml gives its one line, before any work, and leaves nothing behind."""

from __future__ import annotations

import os
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

TABLE = yaml.safe_load((Path(__file__).parent / "malformed_inputs.yaml").read_text())
FILES = {"file.txt": b"text\n", "empty.txt": b"", "binary.bin": bytes(range(256))}
# One of them takes Hydra about half a second. `make faults` and `make test-slow` go through all.
QUICK = [line for i, line in enumerate(TABLE) if not line.startswith("train ") or i % 60 == 0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty home and working directory with a few files."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/nonexistent")
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def check(line: str, here: Path, call) -> None:
    command, *arguments = shlex.split(line)
    GlobalHydra.instance().clear()
    status, out, err = call(import_module(f"rule_extrapolation.cli.{command}").main, *arguments)
    assert (status, out) == (2, "")
    says = TABLE[line]
    if says.endswith("…"):
        assert err.startswith(f"error: {says[:-1]}")
        assert err.count("\n") == 1 and err.endswith("\n")
    else:
        assert err == f"error: {says}\n"
    assert {path.name for path in here.iterdir()} == set(FILES)


@pytest.mark.parametrize("line", QUICK)
def test_some_of_the_table(line, here, call):
    check(line, here, call)


@pytest.mark.slow
@pytest.mark.parametrize("line", TABLE)
def test_the_table(line, here, call):
    check(line, here, call)


def test_the_table_is_long_and_names_fields():
    assert len(TABLE) >= 150
    assert all(len(says) > 10 and "Error" not in says.split()[0] for says in TABLE.values())
