"""A run folder of somebody else's: nothing that is written in it runs, whatever reads it."""

import json
import os
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SHORT

import rule_extrapolation
from rule_extrapolation.__main__ import main
from rule_extrapolation.config.trust import BUILT, known
from rule_extrapolation.core.errors import ConfigError

NOT_BUILT = ("optimizer", "scheduler", "trainer", "callbacks", "logger", "training")
SPOTS = {
    "itself": lambda group, evil: {**group, **evil},
    "nested": lambda group, evil: {**group, "more": {"deep": evil}},
    "listed": lambda group, evil: {**group, "more": [1, [{"deep": evil}]]},
    "argument": lambda group, evil: {**group, "max_new_tokens": evil, "hidden_dim": evil, "max_length": evil},
    "not a name": lambda group, evil: {**group, "_target_": [evil]},
}


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained(), tmp_path / "run")


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Whether what is planted has run."""
    monkeypatch.syspath_prepend(tmp_path)
    mark = tmp_path / "mark"
    (tmp_path / "planted.py").write_text(
        "from pathlib import Path\n"
        "from rule_extrapolation.inference.decoding import Greedy\n"
        f"Path({str(mark)!r}).touch()\n"
        "class Mine(Greedy): pass\n"
    )
    return mark.exists


@pytest.fixture(params=["function", "module"])
def evil(request, tmp_path):
    """A node that touches a file when it is called, or when its module is imported."""
    calls = {"_target_": "os.system", "command": f"touch {tmp_path / 'mark'}"}
    return {"function": calls, "module": {"_target_": "planted.Mine", "_args_": [1]}}[request.param]


def change(run: Path, **groups) -> None:
    """Change groups of a run's config.yaml, each by a function of what it was."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for group, changed in groups.items():
        config[group] = changed(config[group])
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def plant(run: Path, group: str, spot: str, evil: dict) -> None:
    change(run, **{group: lambda node: SPOTS[spot](node, evil)})


def refused(result: tuple[int, str, str]) -> str:
    """The one line of a command that has refused its arguments."""
    status, out, err = result
    assert (status, out, err.count("\n")) == (2, "", 1)
    return err


class TestLoading:
    @pytest.mark.parametrize("spot", SPOTS)
    @pytest.mark.parametrize("group", BUILT)
    def test_what_nobody_registers_is_refused_in_one_line(self, run, ran, evil, call, group, spot):
        plant(run, group, spot, evil)
        for command in (["evaluate"], ["complete", "prompt=ab"]):
            line = refused(call(main, *command, f"run={run}"))
            assert line.startswith(f"error: run={run}: its config.yaml cannot be used: {group}")
            assert evil["_target_"] in line and "pass --trust-run" in line
        with pytest.raises(ConfigError, match=rf"{group}.*_target_=.*trust_run=True"):
            rule_extrapolation.load_run(run)
        assert not ran()

    @pytest.mark.parametrize("spot", SPOTS)
    def test_what_loading_does_not_need_is_not_built(self, run, ran, evil, call, spot):
        for group in NOT_BUILT:
            plant(run, group, spot, evil)
        for trust in ([], ["--trust-run"]):
            status, _, err = call(main, "complete", f"run={run}", "prompt=ab", "samples=0", *trust)
            assert (status, err) == (0, "")
        assert not ran()

    @pytest.mark.parametrize(
        "path",
        [
            "rule_extrapolation.cli.train.main",
            "rule_extrapolation.runs.run_folder.write_rows",
            "rule_extrapolation.training.loggers.wandb.wandb_logger",
            "lightning.pytorch.Trainer",
        ],
    )
    def test_a_class_has_to_be_of_the_group(self, run, path):
        change(run, decoding=lambda node: {"_target_": path})
        with pytest.raises(ConfigError, match=f"decoding._target_={path}: is no decoding of this package"):
            rule_extrapolation.load_run(run)

    def test_trusted_it_is_built(self, run, ran, call):
        change(run, decoding=lambda node: {**node, "_target_": "planted.Mine"})
        status, out, err = call(main, "complete", f"run={run}", "prompt=ab", "samples=0", "--trust-run")
        assert (status, err) == (0, "") and "ab|" in out
        assert ran()
        assert type(rule_extrapolation.load_run(run, trust_run=True).decoder).__name__ == "Mine"
        assert call(main, "evaluate", f"run={run}", "max_length_factor=0", "trust_run=true")[0] == 0

    def test_an_object_takes_the_place_of_what_the_folder_names(self, run, ran, evil):
        loaded = rule_extrapolation.load_run(run)
        plant(run, "model", "itself", evil)
        plant(run, "grammar", "itself", {"_target_": evil["_target_"]})
        again = rule_extrapolation.load_run(run, model=loaded.model, grammar=loaded.grammar)
        assert again.model is loaded.model
        assert again.grammar_with(max_length=20).max_length == 20
        assert not ran()

    def test_help_and_the_known_classes(self, call):
        for command in ("evaluate", "complete"):
            assert "--trust-run" in call(main, command, "--help")[1]
        assert "rule_extrapolation.models.lstm.LSTM_LLM" in known("model")
        assert "rule_extrapolation.grammars.anbn.AnBn" in known("grammar")


class TestTraining:
    """``resume`` and ``ckpt`` take weights and compare settings; they build what the command line says."""

    RESUME = (*SHORT, "trainer.max_steps=5", "hydra.run.dir=rest")

    @pytest.mark.parametrize("group", ["grammar", "data", "model", "optimizer", "scheduler", "training"])
    def test_what_resuming_compares_is_another_setting(self, run, ran, evil, cli, group):
        plant(run, group, "itself", evil)
        line = refused(cli(*self.RESUME, f"resume={run}"))
        assert line.startswith(f"error: {group}.") and f"the run to resume has {evil['_target_']}" in line
        assert not ran()

    def test_what_resuming_does_not_compare_is_not_built(self, run, ran, evil, cli):
        for group in ("decoding", "trainer", "callbacks", "logger"):
            for spot in ("itself", "listed"):
                plant(run, group, spot, evil)
        status, _, err = cli(*self.RESUME, f"resume={run}")
        assert status == 0, err
        assert not ran()

    def test_nor_by_finetuning(self, run, ran, evil, cli):
        for group in (*BUILT, *NOT_BUILT):
            plant(run, group, "itself", evil)
        assert cli(*SHORT, "training=finetune", f"ckpt={run}", "hydra.run.dir=rest")[0] == 0
        assert not ran()

    def test_nor_by_the_report(self, run, ran, evil, call, tmp_path):
        for group in (*BUILT, *NOT_BUILT):
            plant(run, group, "itself", evil)
        assert call(main, "report", f"runs={run}", f"out={tmp_path / 'report'}")[0] == 0
        assert not ran()


class TestInterpolations:
    """A run writes every value resolved."""

    VALUES = ("${oc.env:SECRET}", "${oc.decode:'7'}", "${seed}", "a${oc.env:SECRET}")

    @pytest.fixture(autouse=True)
    def secret(self, monkeypatch):
        monkeypatch.setenv("SECRET", "hush")

    @pytest.mark.parametrize("value", VALUES)
    def test_loading_refuses_them_unread(self, run, call, value):
        change(run, optimizer=lambda node: {**node, "betas": [0.9, value]})
        for trust in ([], ["--trust-run"]):
            line = refused(call(main, "evaluate", f"run={run}", *trust))
            assert f"optimizer.betas.1={value}: " in line and "hush" not in line

    @pytest.mark.parametrize("value", VALUES)
    def test_training_refuses_them_unread(self, run, cli, value):
        change(run, model=lambda node: {**node, "hidden_dim": value})
        err = refused(cli(*SHORT, "trainer.max_steps=5", f"resume={run}", "hydra.run.dir=rest"))
        assert f"model.hidden_dim={value}: " in err and "hush" not in err
        (run / "results.json").unlink()
        status, out, err = cli(*SHORT, "sweep=s", f"hydra.run.dir={run}")
        assert (status, err) == (0, "") and "Made anew" in out and "hush" not in out

    def test_the_report_leaves_them_as_they_are(self, run, call, tmp_path):
        change(run, model=lambda node: {**node, "hidden_dim": "${oc.env:SECRET}"})
        assert call(main, "report", f"runs={run}", f"out={tmp_path / 'report'}")[0] == 0
        written = [path.read_bytes() for path in (tmp_path / "report").rglob("*") if path.is_file()]
        assert written and not any(b"hush" in content for content in written)


class Touches:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_in_place_of_a_checkpoint_gives_one_line_and_no_warning(run, trained, ran, call, cli, tmp_path):
    for name in ("best", "last"):
        (run / "checkpoints" / f"{name}.ckpt").write_bytes(pickle.dumps(Touches(tmp_path / "mark")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "best.ckpt is not a checkpoint" in refused(call(main, "complete", f"run={run}", "prompt=ab"))
        assert "last.ckpt is not a checkpoint" in refused(cli(*SHORT, f"resume={run}", "hydra.run.dir=rest"))
        shutil.copy(trained() / "checkpoints" / "last.ckpt", run / "checkpoints")
        assert "best.ckpt is not a checkpoint" in refused(cli(*SHORT, f"resume={run}", "hydra.run.dir=rest"))
        assert "best.ckpt is not a checkpoint" in refused(cli(*SHORT, "training=finetune", f"ckpt={run}"))
    assert not ran()


@pytest.mark.parametrize("text", ["- a list", "a: [", "a: ${", "!!python/object/apply:os.system [exit]", "\xff"])
def test_a_config_that_cannot_be_read(run, call, cli, text):
    (run / "config.yaml").write_text(text, encoding="latin-1")
    assert f"run={run}: its config.yaml cannot be used: " in refused(call(main, "evaluate", f"run={run}"))
    assert f"run={run}: {run / 'config.yaml'} " in refused(cli(*SHORT, f"resume={run}", "trainer.max_steps=5"))


def test_hydras_pickled_runs_are_not_run(run, ran, cli, tmp_path):
    (run / ".hydra").mkdir(exist_ok=True)
    (run / ".hydra" / "config.pickle").write_bytes(pickle.dumps(Touches(tmp_path / "mark")))
    refused(cli("--experimental-rerun", str(run / ".hydra" / "config.pickle")))
    assert not ran()


def test_torchscript_in_place_of_a_checkpoint_gives_one_line_and_no_warning(run, call):
    with warnings.catch_warnings(action="ignore"):  # torch calls TorchScript deprecated
        torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1)), run / "checkpoints" / "best.ckpt")
    with warnings.catch_warnings(action="error"):
        assert "best.ckpt is not a checkpoint" in refused(call(main, "complete", f"run={run}", "prompt=ab"))


class TestLinks:
    """Nothing is written through a link that leads out of a run's folder."""

    @pytest.fixture
    def outside(self, tmp_path):
        folder = tmp_path / "outside"
        folder.mkdir()
        (folder / "file").write_text("mine")
        return folder

    def test_an_evaluation_is_not_written_through_one(self, run, outside, call):
        shutil.rmtree(run / "evaluations", ignore_errors=True)
        (run / "evaluations").symlink_to(outside)
        line = refused(call(main, "evaluate", f"run={run}", "max_length_factor=0"))
        assert line.startswith(f"error: run={run}: its evaluations is a link out of it")
        assert os.listdir(outside) == ["file"]

    @pytest.mark.parametrize("name", ["metrics.csv", ".config.yaml.tmp", "checkpoints", ".lock", "more/deep"])
    def test_a_run_is_not_continued_through_one(self, run, outside, cli, name):
        (run / "results.json").unlink()
        link = run / name
        if link.is_dir():
            shutil.rmtree(link)
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(outside if name == "checkpoints" else outside / "file")
        line = refused(cli(*SHORT, "sweep=s", f"hydra.run.dir={run}"))
        assert line.startswith(f"error: hydra.run.dir={run}: its {name} is a link out of it")
        assert os.listdir(outside) == ["file"] and (outside / "file").read_text() == "mine"

    def test_links_within_it_are_followed(self, run, call):
        (run / "inner").mkdir()
        shutil.rmtree(run / "evaluations", ignore_errors=True)
        (run / "evaluations").symlink_to("inner")
        assert call(main, "evaluate", f"run={run}", "max_length_factor=0")[0] == 0
        assert list((run / "inner").glob("*/evaluation.json"))


def test_the_report_has_no_html_and_no_tex_of_a_run(run, call, tmp_path):
    results = json.loads((run / "results.json").read_text())
    results |= dict.fromkeys(("model", "caveat", "training"), "x<script>alert(1)</script>\\input{/etc/passwd}")
    (run / "results.json").write_text(json.dumps(results))
    assert call(main, "report", f"runs={run}", f"out={tmp_path / 'report'}")[0] == 0
    written = [path for path in (tmp_path / "report").rglob("*") if path.suffix in (".md", ".html", ".tex", ".svg")]
    assert {path.suffix for path in written} == {".md", ".html", ".tex", ".svg"}
    for path in written:
        text = path.read_text()
        assert "<script>alert" not in text
        assert path.suffix != ".tex" or "\\input" not in text


@pytest.mark.parametrize("name", ["../../x", "/tmp/x"])
@pytest.mark.parametrize("group", ["model", "grammar"])
def test_no_name_is_a_path(run, call, group, name):
    change(run, **{group: lambda node: {**node, "name": name}})
    before = {*run.parent.rglob("*")}
    assert f"{group}.name={name}" in refused(call(main, "evaluate", f"run={run}", "max_length_factor=0"))
    assert {*run.parent.rglob("*")} == before


def test_a_checkpoint_that_is_resumed_names_no_files(run, cli, tmp_path):
    """Lightning deletes the files of worse checkpoints, whose paths are in the state that it restores."""
    mine = tmp_path / "mine.ckpt"
    mine.write_text("mine")
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    path_up = f"{tmp_path}/rest/checkpoints/../../mine.ckpt"
    for state in checkpoint["callbacks"].values():
        if "best_model_path" in state:
            paths = dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), path_up)
            state |= {**paths, "best_k_models": {path_up: torch.tensor(9.0)}, "best_model_score": torch.tensor(9.0)}
            state |= {"dirpath": f"{tmp_path}/rest/checkpoints", "kth_value": torch.tensor(9.0)}
    torch.save(checkpoint, path)
    assert cli(*SHORT, "trainer.max_steps=8", f"resume={run}", "hydra.run.dir=rest")[0] == 0
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("extra", [{"_args_": [1]}, {"_partial_": True}, {"_convert_": "all"}, {"_recursive_": False}])
def test_hydras_own_keys_build_nothing_else(run, ran, call, extra):
    change(run, decoding=lambda node: {**node, **extra})
    status, _, err = call(main, "complete", f"run={run}", "prompt=ab", "samples=0")
    assert (status, err.count("\n")) in ((0, 0), (2, 1))
    assert not ran()
