"""Completions of one prompt: what is printed, how probable they are, and the session."""

import io
import itertools
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import environment

from rule_extrapolation.cli.complete import main
from rule_extrapolation.core.tokens import EOS, PAD, SOS
from rule_extrapolation.experiment.trained_run import load_run
from rule_extrapolation.inference.evaluation import probabilities


def lines(out):
    """(decoding, prompt, completion, p, the rest) of each completion printed."""
    return re.findall(r"^(greedy|sample) +(\S*)\|(\S*) +p (\S+) +(.*?) *$", out, re.MULTILINE)


class TestOutput:
    def test_an_id_prompt_and_the_only_word_that_begins_so(self, trained, call):
        status, out, err = call(main, f"run={trained('model=oracle')}", "prompt=aab", "samples=2")
        assert (status, err) == (0, "")
        assert "prompt aab, ID: a prefix of a word" in out
        assert "EOS included, at temperature 1" in out
        marks = "R1 ✓ #a = #b  R2 ✓ a's before b's  R3 ✓ even length  in the language"
        assert lines(out) == [(name, "aab", "b", "1", marks) for name in ("greedy", "sample", "sample")]

    def test_an_ood_prompt_and_the_rules_that_it_breaks(self, trained, call):
        _, out, _ = call(main, f"run={trained('model=oracle')}", "prompt=bbaaa", "samples=0")
        assert "prompt bbaaa, OOD: not a prefix of any word" in out
        [(decoding, _, completion, _, marks)] = lines(out)
        assert decoding == "greedy"
        same = "✓" if completion.count("b") - completion.count("a") == 1 else "✗"
        assert marks.startswith(f"R1 {same} #a = #b  R2 ✗ a's before b's")
        assert marks.endswith("not in the language")

    def test_brackets_and_the_empty_prompt(self, trained, call):
        run = trained("grammar=L5", "model=oracle")
        _, out, _ = call(main, f"run={run}", "prompt=([", "samples=1")
        assert all(prompt == "([" and "in the language" in rest for _, prompt, _, _, rest in lines(out))
        _, out, _ = call(main, f"run={run}", "prompt=", "samples=1")
        assert "prompt (empty), ID" in out

    def test_unfinished_is_said(self, trained, call):
        _, out, _ = call(main, f"run={trained('model=oracle')}", "prompt=aaab", "samples=0", "max_new_tokens=1")
        [(_, _, completion, p, rest)] = lines(out)
        assert (completion, p) == ("b", "1")
        assert rest.endswith("unfinished")

    def test_draws_follow_the_seed(self, trained, call):
        arguments = [f"run={trained()}", "prompt=ba", "temperature=2"]
        first, second, other = (call(main, *arguments, f"seed={seed}")[1] for seed in (0, 0, 1))
        assert first == second != other
        assert [name for name, *_ in lines(first)] == ["greedy", *["sample"] * 5]


class TestLimits:
    """Of a run whose prompts and completions have four tokens together, SOS included."""

    @pytest.fixture
    def run(self, trained):
        return trained("model=oracle", "decoding.max_tokens=4")

    def test_the_runs_hold_by_default(self, run, call):
        _, out, _ = call(main, f"run={run}", "prompt=aa", "samples=2")
        assert all(len(completion) == 1 for _, _, completion, _, _ in lines(out))
        assert out.count("unfinished") == 3
        for temperature in (None, 1.0):
            completion = load_run(str(run)).complete("aa", temperature)
            assert (len(completion.text), completion.finished) == (1, False)

    def test_a_given_one_holds_instead(self, run, call):
        _, out, _ = call(main, f"run={run}", "prompt=aab", "samples=2", "max_new_tokens=9")
        assert [completion for _, _, completion, _, _ in lines(out)] == ["b"] * 3
        assert "unfinished" not in out
        assert load_run(str(run)).complete("aab", max_new_tokens=9).finished


class TestRows:
    @pytest.mark.parametrize("positions", ["by_row", "none"])
    def test_a_model_that_depends_on_them_says_so(self, trained, call, positions):
        run = trained("model=transformer", f"model.positions={positions}")
        _, out, _ = call(main, f"run={run}", "prompt=aab", "samples=1")
        assert out.count("depends on its row in the batch") == (positions == "by_row")


class TestProbabilities:
    def test_as_printed_they_are_those_of_the_steps(self, trained, call):
        run = trained()
        _, out, _ = call(main, f"run={run}", "prompt=ba", "max_new_tokens=3", "temperature=3", "samples=8")
        loaded = load_run(str(run))
        tokens = {"^": SOS, "_": PAD, "a": 3, "b": 4}
        for _, prompt, completion, p, rest in lines(out):
            added = [tokens[symbol] for symbol in completion] + [EOS] * ("unfinished" not in rest)
            logits, state = loaded.model.prefill(torch.tensor([[SOS, *(tokens[symbol] for symbol in prompt)]]))
            probability = 1.0
            for token in added:
                probability *= logits[0].softmax(0)[token].item()
                logits, state = loaded.model.step(torch.tensor([token]), state)
            assert float(p) == pytest.approx(probability, rel=5e-3)
        assert len(lines(out)) == 9

    def test_all_that_may_follow_sums_to_1(self, trained):
        """Every way to go on for three tokens or up to EOS."""
        model = load_run(str(trained())).model
        added = {(*way, EOS)[: (*way, EOS).index(EOS) + 1][:3] for way in itertools.product(range(5), repeat=3)}
        assert len(added) == 1 + 4 + 4 * 4 * 5
        rows = torch.tensor([[SOS, 4, 3, *way, *[PAD] * (3 - len(way))] for way in sorted(added)])
        assert probabilities(model, rows, 3).sum().item() == pytest.approx(1, abs=1e-5)


ERRORS = {
    "run=nowhere prompt=a": "run=nowhere: there is no such folder",
    "run={run} promt=a": "promt=a: no such key; did you mean prompt?",
    "run={run} prompt=abxyx": "prompt=abxyx: 'xy' is not in the alphabet of aNbN: a b",
    "run={run} prompt=${{seed}}": "is not in the alphabet of aNbN: a b",
    "run={run} prompt=aaaaaaaaaaaaa": "has 13 symbols; use 12 or less, the model reads no more",
    "run={run} prompt=a samples=-1": "samples=-1: must be 0 or more",
    "run={run} prompt=a samples=x": "samples=x: must be int",
    "run={run} prompt=a temperature=0": "temperature=0.0: must be greater than 0",
    "run={run} prompt=a seed=-1": "seed=-1: must be from 0",
    "run={run} prompt=a max_new_tokens=0": "max_new_tokens=0: must be greater than 0",
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.items())
def test_errors_are_one_line(trained, call, arguments, message):
    run = trained("model=linear")
    status, out, err = call(main, *(word.format(run=run) for word in arguments.split()))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err


class TestSession:
    @pytest.mark.parametrize("end", ["exit\nab\n", ""])
    def test_prompts_until_exit_or_the_end_of_the_input(self, trained, call, monkeypatch, end):
        monkeypatch.setattr(sys, "stdin", io.StringIO("aab \n\nabx\naabb\n" + end))
        status, out, err = call(main, f"run={trained('model=oracle')}", "samples=0")
        assert (status, err) == (0, "")
        assert [prompt for _, prompt, *_ in lines(out)] == ["aab", "", "aabb"]
        assert out.count("error: prompt=abx: 'x' is not in the alphabet of aNbN: a b") == 1

    def test_ctrl_c_ends_it(self, trained, tmp_path):
        command = [sys.executable, "-u", "-m", "rule_extrapolation.complete", f"run={trained('model=oracle')}"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), text=True, **pipes)
        process.stdin.write("aab\n")
        process.stdin.flush()
        shown = ""
        while shown.count("prompt> ") < 2:
            character = process.stdout.read(1)
            assert character, process.stderr.read()
            shown += character
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=30)
        assert (process.returncode, err, rest) == (0, "", "\n")
        assert [completion for _, _, completion, *_ in lines(shown)] == ["b"] * 6
