"""What is printed: text as it is, and nothing once nobody reads."""

from __future__ import annotations

from conftest import SHORT

from rule_extrapolation.cli import complete, evaluate, report


def test_names_are_not_read_as_markup(cli, call):
    folder = "u[/b] [red] :smile:"
    quoted = f"hydra.run.dir='{folder}'"
    status, out, err = cli(*SHORT, "grammar=brackets", quoted)
    assert (status, err) == (0, "")
    assert f"Run folder: {folder}\n" in out
    status, out, err = call(complete.main, f"run={folder}", "prompt=[][", "samples=1")
    assert (status, err) == (0, "")
    assert "prompt [][" in out
    status, out, err = call(evaluate.main, f"run={folder}", "lengths=4")
    assert (status, err) == (0, "")
    assert f"Evaluation folder: {folder}/" in out
    status, out, err = call(report.main, f"runs={folder}", f"out={folder}/report")
    assert status == 0
    assert f"{folder}/report" in out


def test_text_is_not_read_as_markup_and_moves_no_cursor(cli, call, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "[b].txt").write_text("[/b]\t\x1b[2J:smile:\r" * 400)
    text = ["data=text", "data.path='[b].txt'", "trainer.max_steps=2", "logger=csv", "hydra.run.dir=run"]
    status, out, err = cli(*text, "model.hidden_dim=8")
    assert (status, err) == (0, "")
    assert "[/b]⇥" in out and ":smile:" in out
    assert not {"\t", "\x1b", "\r"} & set(out.partition("Stretches")[2])
    assert max(map(len, out.splitlines())) < 300
    status, out, err = call(complete.main, "run=run", "prompt=[/b]\t")
    assert (status, err) == (0, "")
    assert "[/b]⇥|" in out
