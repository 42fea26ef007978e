"""What import rule_extrapolation gives, and the command rule-extrapolation."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHORT, environment, read_results
from omegaconf import OmegaConf
from torch import nn
from torch.nn.functional import one_hot

import rule_extrapolation
from rule_extrapolation.__main__ import COMMANDS, main
from rule_extrapolation.config.composing import compose
from rule_extrapolation.experiment.prompts import Completion
from rule_extrapolation.grammars.abn import AbN
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.models.lstm import LSTM_LLM


def test_importing_the_package_imports_no_torch():
    code = "import sys, rule_extrapolation; print('torch' in sys.modules, *dir(rule_extrapolation))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", *sorted(rule_extrapolation.__all__)]


@pytest.mark.parametrize("name", rule_extrapolation.__all__)
def test_every_public_name_is_there(name):
    value = getattr(rule_extrapolation, name)
    assert value == "0.1.0" if name == "__version__" else value.__name__ == name


def test_type_checkers_see_every_public_name():
    """The imports that they follow are those that are made when a name is first used."""
    tree = ast.parse(Path(rule_extrapolation.__file__).read_text())
    imports = [node for branch in tree.body if isinstance(branch, ast.If) for node in branch.body]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted([*seen, "__version__"]) == sorted(rule_extrapolation.__all__)
    for name, module in seen.items():
        assert getattr(importlib.import_module(module), name) is getattr(rule_extrapolation, name)


def test_a_misspelt_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rule_extrapolation.trian  # noqa: B018


def test_former_module_names_of_commands_work_and_shadow_nothing():
    code = (
        "import runpy, sys, rule_extrapolation\n"
        "for name in ('evaluate', 'complete', 'report', 'budget', 'dashboard'):\n"
        "    sys.argv = [name, '--help']\n"
        "    runpy.run_module(f'rule_extrapolation.{name}', run_name='__main__', alter_sys=True)\n"
        "try:\n"
        "    import rule_extrapolation.train\n"
        "except ModuleNotFoundError:\n"
        "    print('train is', rule_extrapolation.train.__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("train is rule_extrapolation.experiment.train\n")


def test_help_names_every_command(call):
    status, out, _ = call(main, "--help")
    assert status == 0
    assert all(f"\n  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call, command):
    status, out, err = call(main, command, "--help")
    assert (status, err) == (0, "")
    assert len(out.splitlines()) > 2


def test_a_misspelt_command_is_one_line(call):
    status, out, err = call(main, "trian")
    assert (status, out) == (2, "")
    assert err.startswith("error: trian: no such command; did you mean train? (one of train, ")
    assert err.count("\n") == 1


def test_languages_lists_them(call):
    status, out, _ = call(main, "languages")
    assert status == 0
    assert "L3  aNbN  context-free" in out
    assert "not_nested_parentheses_and_brackets" in out


@pytest.mark.parametrize(
    ("word", "message"),
    {
        "L3": "arguments=L3: settings are key=value; write check=L3",
        "foo=bar": "foo=bar: no such key; must be one of check",
    }.items(),
)
def test_languages_rejects_other_arguments(call, word, message):
    assert call(main, "languages", word) == (2, "", f"error: {message}\n")


def test_version(call):
    assert call(main, "--version") == (0, f"rule_extrapolation {rule_extrapolation.__version__}\n", "")


@pytest.mark.parametrize(("command", "key"), [("evaluate", "run"), ("complete", "run"), ("report", "runs")])
def test_a_folder_without_its_key_is_one_line(call, command, key):
    message = f"error: arguments=runs/first: settings are key=value; write {key}=runs/first\n"
    assert call(main, command, "runs/first") == (2, "", message)


def test_help_explains_every_setting_of_a_run(call):
    _, out, _ = call(main, "train", "--help")
    explained = out.split("Settings of a run:")[1].split("Groups")[0]
    cfg = compose()
    for key in cfg:
        if OmegaConf.is_interpolation(cfg, key) or not OmegaConf.is_config(cfg[key]):
            assert f"\n  {key}= " in explained
    assert all(f"\n  {option} " in out for option in ("-m", "--list", "--cfg job", "hydra.run.dir="))


def test_train_is_the_runner(cli, call, tmp_path):
    status, out, _ = call(main, "train", "--list")
    assert status == 0
    assert "aNbN" in out


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["languages"], ["evaluate", "--help"]])
def test_a_closed_pipe_ends_a_command_without_traceback(command, tmp_path):
    """As ``| head`` does, which may end before the command has written anything."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "rule_extrapolation", *command]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("unbuffered", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_training_outlives_a_closed_pipe(tmp_path, unbuffered):
    """Each run of a sweep is finished; what they print is dropped."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, *["-u"] * unbuffered, "-m", "rule_extrapolation", "train", "-m", "seed=0,1", *SHORT]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), stdout=write, stderr=write)
    os.close(write)
    assert done.returncode == 0
    results = sorted(tmp_path.rglob("results.json"))
    assert [read_results(path.parent)["status"] for path in results] == ["finished", "finished"]


class Copier(LanguageModel):
    """Predicts the token that it has just read, with trained confidence."""

    def __init__(self, num_tokens: int):
        super().__init__()
        self.confidence = nn.Parameter(torch.ones(num_tokens))

    def init_state(self, batch_size: int) -> None:
        return None

    def advance(self, tokens, state):
        return one_hot(tokens, len(self.confidence)) * self.confidence, state


class ABs(AbN):
    """As abN, by another name."""

    name = "ABs"


class Multiples(AbN):
    """A constructor without test_prompt_length."""

    name = "Multiples"

    def __init__(self, max_length: int, k: int = 2):
        super().__init__(max_length)
        self.k = k


class Secret(AbN):
    """Keeps its argument by another name."""

    name = "Secret"

    def __init__(self, max_length: int, k: int = 2):
        super().__init__(max_length)
        self.hidden = k


class TestTrainWithObjects:
    SETTINGS = ("logger=csv", "trainer.max_steps=3", "data.num_train=32", "data.num_val=8", "data.num_test=8")

    @pytest.fixture
    def trained_objects(self, tmp_path):
        model, grammar = Copier(num_tokens=5), ABs(max_length=10)
        run = rule_extrapolation.train(
            tmp_path / "run", *self.SETTINGS, "decoding.max_new_tokens=4", grammar=grammar, model=model, quiet=True
        )
        return run, model, grammar

    def test_they_are_what_is_trained_and_loaded(self, trained_objects):
        run, model, grammar = trained_objects
        assert run.model is model and run.grammar is grammar
        assert run.results["status"] == "finished"
        assert (run.results["model"], run.results["grammar"]) == ("Copier", "ABs")
        assert not torch.equal(model.confidence, torch.ones(5))

    def test_a_run_of_importable_classes_loads_with_the_object_that_needs_arguments(self, trained_objects):
        run, model, _ = trained_objects
        again = rule_extrapolation.load_run(run.folder, model=Copier(num_tokens=5), trust_run=True)
        assert torch.equal(again.model.confidence, model.confidence)
        assert again.grammar.name == "ABs" and again.grammar.max_length == 10

    def test_completions_logits_and_metrics(self, trained_objects):
        run, _, _ = trained_objects
        completion = run.complete("aab")
        assert (completion.prompt, completion.text, completion.finished) == ("aab", "bbbb", False)
        assert completion.rules == {"rule_1": False}
        assert str(completion) == "bbbb" and repr(completion) == "aab|bbbb  R1 broken  unfinished"
        logits = run.logits("aab")
        assert logits.shape == (4, 5)
        assert completion.probability == pytest.approx(logits.softmax(1)[3, 4].item() ** 4)
        metrics = run.read_metrics()
        assert list(metrics.columns) == ["step", "epoch", "metric", "value"]
        validated = metrics[metrics.metric == "Val/loss"]
        assert validated.value.tolist() == [run.results["at_best_validation"]["Val/loss"]]

    def test_a_draw_follows_its_seed(self, trained_objects):
        run, _, _ = trained_objects
        drawn = [run.complete("a", temperature=5.0, seed=seed, max_new_tokens=10).text for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1] != drawn[2]

    def test_its_repr_is_a_line(self, trained_objects):
        run, _, _ = trained_objects
        assert repr(run) == f"TrainedRun: Copier (5 parameters, best checkpoint) on ABs, {run.folder}"

    def test_a_model_with_another_number_of_tokens_is_refused(self, tmp_path):
        with pytest.raises(rule_extrapolation.ConfigError, match="model=Copier: has 7 tokens; aNbN has 5"):
            rule_extrapolation.train(tmp_path / "run", *self.SETTINGS, model=Copier(num_tokens=7))
        assert not (tmp_path / "run").exists()

    def test_a_prompt_outside_the_alphabet_is_named(self, trained_objects):
        run, _, _ = trained_objects
        with pytest.raises(rule_extrapolation.ConfigError, match="prompt=abx: 'x' is not in the alphabet of ABs: a b"):
            run.complete("abx")

    def test_the_callers_model_stays_trainable(self, trained_objects):
        run, model, grammar = trained_objects
        assert all(parameter.requires_grad for parameter in model.parameters())
        before = model.confidence.detach().clone()
        again = rule_extrapolation.train(
            run.folder.parent / "again", *self.SETTINGS, "decoding.max_new_tokens=4", grammar=grammar, model=model
        )
        assert not torch.equal(again.model.confidence, before)
        loaded = rule_extrapolation.load_run(run.folder, model=Copier(num_tokens=5), trust_run=True)
        assert loaded.model.confidence.requires_grad

    def test_a_model_without_trainable_weights_is_refused(self, tmp_path):
        frozen = Copier(num_tokens=5).requires_grad_(False)
        with pytest.raises(rule_extrapolation.ConfigError, match=r"^model=Copier: none of its weights is trainable"):
            rule_extrapolation.train(tmp_path / "run", *self.SETTINGS, model=frozen)
        assert not (tmp_path / "run").exists()

    def train_on(self, grammar, folder):
        settings = [*self.SETTINGS, "decoding.max_new_tokens=4"]
        return rule_extrapolation.train(folder, *settings, grammar=grammar, model="linear", quiet=True)

    def test_a_languages_options_are_recorded(self, tmp_path):
        grammar = rule_extrapolation.get_grammar("L3", max_length=16, only_even=True)
        self.train_on(grammar, tmp_path / "run")
        again = rule_extrapolation.load_run(tmp_path / "run").grammar
        assert again.all_words().tolist() == grammar.all_words().tolist()
        assert len(again.all_words()) == 4
        assert repr(again) == "AnBn(max_length=16, only_even=True)"

    def test_a_language_with_a_constructor_of_its_own_is_built_again(self, tmp_path):
        self.train_on(Multiples(12, k=3), tmp_path / "run")
        with pytest.raises(
            rule_extrapolation.ConfigError, match=r"grammar\._target_=test_public_api\.Multiples: is no grammar"
        ):
            rule_extrapolation.load_run(tmp_path / "run")
        run = rule_extrapolation.load_run(tmp_path / "run", trust_run=True)
        assert run.grammar.k == 3
        assert run.grammar_with(max_length=20).max_length == 20
        with pytest.raises(
            rule_extrapolation.ConfigError, match="test_prompt_length=4: Multiples takes no test_prompt"
        ):
            run.grammar_with(test_prompt_length=4)

    def test_such_a_language_can_be_evaluated(self, tmp_path, call):
        self.train_on(Multiples(12, k=3), tmp_path / "run")
        status, _, err = call(main, "evaluate", f"run={tmp_path / 'run'}", "max_length_factor=1", "--trust-run")
        assert (status, err) == (0, "")

    def test_an_option_that_no_attribute_tells_needs_the_object_again(self, tmp_path):
        self.train_on(Secret(12, k=3), tmp_path / "run")
        with pytest.raises(
            rule_extrapolation.ConfigError, match=r"does not keep as attributes: grammar\.k; pass grammar="
        ):
            rule_extrapolation.load_run(tmp_path / "run", trust_run=True)
        assert rule_extrapolation.load_run(tmp_path / "run", grammar=Secret(12, k=3)).grammar.hidden == 3

    def test_a_model_whose_arguments_no_attribute_tells_needs_the_object_again(self, tmp_path):
        model = LSTM_LLM(5, embedding_dim=4, hidden_dim=4, num_layers=1)
        rule_extrapolation.train(tmp_path / "run", *self.SETTINGS, model=model, quiet=True)
        with pytest.raises(rule_extrapolation.ConfigError) as refused:
            rule_extrapolation.load_run(tmp_path / "run")
        assert "pass model= again" in str(refused.value)
        assert rule_extrapolation.load_run(tmp_path / "run", model=model).model is model

    @pytest.mark.parametrize(
        ("overrides", "objects", "message"),
        [
            (["model.num_layers=3"], {"model": True}, "model.num_layers=3: the model is given as an object"),
            (["width=3"], {"model": True}, "width=3: the model is given as an object"),
            (["grammar=L5"], {"grammar": True}, "grammar=L5: the grammar is given as an object"),
            (["data.max_length=5"], {"grammar": True}, "data.max_length=5: the grammar is given as an object"),
            (["hydra.run.dir=/x"], {}, "hydra.run.dir=/x: is for the command line; leave it out"),
            (["run_dir=x"], {}, "run_dir=x: the first argument is the run's folder"),
            (["-m", "seed=0,1"], {}, "overrides=-m: train takes key=value only, and makes one run"),
            (["model=lstm"], {"model": "gru"}, "model=lstm: model= is given twice; give it once"),
            (["data=text"], {"grammar": True}, "grammar=ABs: data=text trains on a text"),
            (["model.hiden_dim=3"], {}, "model.hiden_dim=3: no such key; did you mean hidden_dim?"),
            ([], {"model": "lst"}, "model=lst: did you mean lstm?"),
            ([], {"grammar": "L33"}, "grammar=L33: did you mean L3?"),
            ([], {"model": Copier}, "model=Copier: is a class; pass an object of it: Copier(...)"),
            ([], {"grammar": ABs}, "grammar=ABs: is a class; pass an object of it: ABs(...)"),
            ([], {"model": nn.Linear(1, 1)}, "model=Linear: must be a LanguageModel"),
        ],
        ids=str,
    )
    def test_what_cannot_be_is_one_line(self, tmp_path, overrides, objects, message):
        made = {"model": Copier(num_tokens=5), "grammar": ABs(max_length=10)}
        objects = {name: made[name] if value is True else value for name, value in objects.items()}
        with pytest.raises(rule_extrapolation.ConfigError) as refused:
            rule_extrapolation.train(tmp_path / "run", *overrides, **objects)
        assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
        assert not (tmp_path / "run").exists()

    def test_a_forgotten_folder_is_noticed(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            rule_extrapolation.ConfigError, match="is a setting; the first argument is the run's folder"
        ):
            rule_extrapolation.train("trainer.max_steps=3", "model=lstm")
        assert not list(tmp_path.iterdir())

    def test_a_language_and_a_model_by_name(self, tmp_path):
        run = rule_extrapolation.train(
            tmp_path / "run", *self.SETTINGS, "model.embedding_dim=4", grammar="L4", model="mingru", quiet=True
        )
        assert (run.results["model"], run.results["grammar"]) == ("mingru", "aNbNcN")

    def test_a_prompt_that_is_no_string_is_one_line(self, trained_objects):
        run, _, _ = trained_objects
        with pytest.raises(rule_extrapolation.ConfigError, match=r"^prompt=null: must be a string$"):
            run.complete(None)


def test_the_repr_of_a_completed_text_is_a_line():
    assert repr(Completion("a\n", "b\nc", True, 0.5)) == "a\\n|b\\nc"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maxlength": 8}, "maxlength=8: no such option; did you mean max_length?"),
        ({"max_length": 8, "only_evn": True}, "only_evn=true: no such option; did you mean only_even?"),
        ({}, "max_length=null: is needed"),
    ],
)
def test_get_grammar_names_what_is_wrong(options, message):
    with pytest.raises(rule_extrapolation.ConfigError) as refused:
        rule_extrapolation.get_grammar("L3", **options)
    assert str(refused.value).startswith(message)


def test_the_repr_of_a_language_is_how_to_make_it():
    assert repr(rule_extrapolation.get_grammar("L5", max_length=16)) == "ParenthesesAndBrackets(max_length=16)"
    grammar = rule_extrapolation.get_grammar("L3", max_length=16, test_prompt_length=4, all_sequences=False)
    assert repr(grammar) == "AnBn(max_length=16, test_prompt_length=4, all_sequences=False)"
