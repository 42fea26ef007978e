"""What import rule_extrapolation gives, and the command rule-extrapolation."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, environment
from torch import nn
from torch.nn.functional import one_hot

import rule_extrapolation
from rule_extrapolation.__main__ import COMMANDS, main
from rule_extrapolation.grammars.abn import AbN
from rule_extrapolation.models.language_model import LanguageModel


def test_importing_the_package_imports_no_torch():
    code = "import sys, rule_extrapolation; print('torch' in sys.modules, *dir(rule_extrapolation))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", *sorted(rule_extrapolation.__all__)]


@pytest.mark.parametrize("name", rule_extrapolation.__all__)
def test_every_public_name_is_there(name):
    value = getattr(rule_extrapolation, name)
    assert value == "0.1.0" if name == "__version__" else value.__name__ == name


def test_a_misspelt_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rule_extrapolation.trian  # noqa: B018


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
        again = rule_extrapolation.load_run(run.folder, model=Copier(num_tokens=5))
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
