"""The benchmarks run: the harness on a tiny comparison, and both sides of every script's own at shortened sizes."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from conftest import ROOT

sys.path.append(str(ROOT))

from benchmarks.__main__ import SCRIPTS, main
from benchmarks.comparison import Comparison, measure
from benchmarks.table import Table

SHORT = {
    "recurrence": {"sizes": ((2, 5), (1, 9))},
    "steps": {"batch_size": 2},
    "decoding": {"lengths": (32,), "num_prompts": 2},
    "sampling": {"num": 3, "length": 16},
    "rules": {"num": 6, "length": 16},
    "trainer": {"steps": 2, "repeats": 1},
    "seeds": {"seeds": 1, "overrides": ("trainer.max_steps=2",)},
    "startup": {},
}


def comparison(name, ours, **more):
    x = torch.arange(1000.0)
    return Comparison(name, ours, lambda: sum(x.tolist()), "the builtin sum", at_least=1e-6, repeats=1, **more)


def test_a_row_that_fails_does_not_lose_the_table(capsys):
    def rows():
        yield comparison("a sum", lambda: torch.arange(1000.0).sum())
        yield comparison("a mistake", lambda: torch.zeros(2) @ torch.zeros(3))
        yield comparison("another sum", lambda: torch.arange(1000.0).sum())
        import mambapy_that_is_not_there

        yield mambapy_that_is_not_there

    table = Table()
    table.begin()
    table.add("sums", rows)
    _, _, _, first, second, third, last = capsys.readouterr().out.splitlines()
    assert first.startswith("| a sum | ") and first.endswith(" | met |")
    assert second.startswith("| a mistake | RuntimeError: ")
    assert third.startswith("| another sum | ")
    assert "not installed: mambapy_that_is_not_there; pip install" in last
    assert len({line.count("|") for line in (first, second, third, last)}) == 1
    assert table.failed == 2


def test_a_measurement_is_of_what_was_called():
    calls = []
    timing = measure(comparison("counted", lambda: calls.append(1)))
    assert len(calls) > 2
    assert timing.ratio == timing.peer / timing.ours > 0


WHOLE_COMMANDS = ("seeds", "startup")


@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=pytest.mark.slow) if name in WHOLE_COMMANDS else name for name in SCRIPTS]
)
def test_both_sides_of_every_comparison_run(script):
    if script == "recurrence":
        pytest.importorskip("minGRU_pytorch")
    rows = list(import_module(f"benchmarks.{script}").comparisons(**SHORT[script]))
    assert len({(row.name, row.peer_name) for row in rows}) == len(rows) > 0
    for row in rows[: 1 if script == "seeds" else None]:  # whole commands, of which one is enough
        row.ours()
        if "mambapy" not in row.peer_name or find_spec("mambapy"):
            row.peer()


def test_decoding_from_a_state_and_from_the_whole_prefix_agree():
    for row in import_module("benchmarks.decoding").comparisons(**SHORT["decoding"]):
        assert torch.equal(row.ours(), row.peer()), row.name


def test_an_unknown_script_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["decodin"])
    assert "invalid choice: 'decodin'" in capsys.readouterr().err
