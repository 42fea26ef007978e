"""Evaluation of trained runs on other prompts, with other decoders and on longer words; loading runs."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import environment, read_results

from rule_extrapolation.cli.evaluate import main
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.random import generator
from rule_extrapolation.experiment.trained_run import load_run
from rule_extrapolation.grammars import LANGUAGES, get_grammar
from rule_extrapolation.inference.evaluation import evaluation_lengths, words_of_length


def evaluations(run):
    return sorted((run / "evaluations").iterdir())


def read_csv(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def evaluated(call):
    """Evaluate a run. Returns the contents of evaluation.json, the evaluation's folder and the output."""

    def evaluated(run, *arguments):
        status, out, err = call(main, f"run={run}", *arguments)
        assert (status, err) == (0, "")
        folder = evaluations(run)[-1]
        assert folder.name in out.replace("\n", "")
        return json.loads((folder / "evaluation.json").read_text()), folder, out

    return evaluated


class TestPrompts:
    def test_without_arguments_it_reproduces_the_runs_figures(self, trained, evaluated):
        run = trained("grammar=L1")
        evaluation, folder, _ = evaluated(run, "max_length_factor=0")
        results, again = read_results(run), evaluation["prompt_length"]["8"]
        assert again["test"] == {key: value for key, value in results["test"].items() if key.endswith("_accuracy")}
        assert again["chance_levels"] == results["chance_levels"]
        assert evaluation["checkpoint"] == "checkpoints/best.ckpt"
        written = [{"prompt_length": "8", **row} for row in read_csv(run / "completions.csv")]
        assert read_csv(folder / "completions.csv") == written
        assert not (folder / "lengths.csv").exists()

    def test_a_table_for_each_prompt_length(self, trained, evaluated):
        evaluation, folder, out = evaluated(trained("model=oracle"), "prompt_length=4,6", "max_length_factor=0")
        assert re.findall(r"prompt_length=(\d)", out) == ["4", "6"]
        sizes = [re.findall(r"\d+", line) for line in out.splitlines() if line.startswith("│ prompts")]
        assert sizes == [["3", "13", "1"], ["4", "60", "1"]]  # ID, OOD and SOS
        for n in ("4", "6"):
            test = evaluation["prompt_length"][n]["test"]
            metrics = ("finished", "rule_1", "rule_2", "rule_3", "grammatical")
            assert [test[f"Test/ID/{metric}_accuracy"] for metric in metrics] == [1.0] * 5
        rows = read_csv(folder / "completions.csv")
        assert {len(row["prompt"]) for row in rows if row["prompt_set"] == "ID" and row["prompt_length"] == "4"} == {4}
        assert [row["completion"] for row in rows if row["prompt"] in ("aaab", "aabb")] == ["bb", ""]

    def test_accuracies_are_over_all_samples(self, trained, evaluated):
        sampled = ["decoding=sample", "temperature=2", "samples=3", "prompt_length=3", "max_length_factor=0"]
        evaluation, folder, out = evaluated(trained(), *sampled)
        rows = [row for row in read_csv(folder / "completions.csv") if row["prompt_set"] == "OOD"]
        assert len(rows) == 3 * evaluation["prompt_length"]["3"]["prompts"]["OOD"]
        finished = sum(row["finished"] == "True" for row in rows) / len(rows)
        test = evaluation["prompt_length"]["3"]["test"]
        assert test["Test/OOD/finished_accuracy"] == pytest.approx(finished)
        assert len({row["completion"] for row in rows if row["prompt"] == "baa"}) > 1
        assert evaluation["decoding"] == {
            "name": "sample",
            "max_new_tokens": 24,
            "temperature": 2.0,
            "seed": 0,
            "max_tokens": None,
        }
        assert "3 samples each" in out

    def test_longer_budgets(self, trained, evaluated):
        _, folder, _ = evaluated(trained(), "max_new_tokens=50", "max_length_factor=0")
        rows = read_csv(folder / "completions.csv")
        assert {len(row["completion"]) for row in rows if row["finished"] == "False"} == {50}

    def test_a_limit_of_prompt_and_completion_is_named_where_it_is_the_cause(self, trained, evaluated):
        run = trained("model=linear", "decoding.max_tokens=11")
        for argument, limits in {"max_new_tokens=50": (9, 2), "prompt_length=12": (13, 1)}.items():
            evaluation, _, _ = evaluated(run, argument, "max_length_factor=0")
            [note] = evaluation["notes"]
            assert "decoding.max_tokens=11, for prompt and completion together" in note
            assert note.endswith("prompts of {} get at most {} new ones".format(*limits))


class TestLengths:
    def test_the_oracles_loss_is_optimal(self, trained, evaluated):
        """6 equally probable words a^n b^n: ln 6 nats, divided by the number of symbols and EOS."""
        evaluation, folder, _ = evaluated(trained("model=oracle"))
        rows = read_csv(folder / "lengths.csv")
        assert [int(row["length"]) for row in rows] == [2, 6, 8, 12, 18, 24, 36, 48]
        for row in rows[:4]:
            optimum = math.log(6) / (int(row["length"]) + 1)
            assert float(row["loss"]) == pytest.approx(optimum, abs=1e-6)
            assert float(row["oracle_loss"]) == pytest.approx(optimum, abs=1e-6)
            assert (row["grammatical_accuracy"], row["finished_accuracy"]) == ("1.0", "1.0")
        assert all(row["oracle_loss"] == "" and float(row["loss"]) > 1 for row in rows[4:])
        assert evaluation["lengths"]["12"]["prompt_symbols"] == 7

    def test_limits_of_prompt_and_completion_leave_room_for_the_words(self, trained, evaluated):
        run = trained("model=oracle", "decoding.max_tokens=4", "decoding.max_new_tokens=1")
        evaluation, _, _ = evaluated(run, "lengths=6,8,12")
        assert [row["grammatical_accuracy"] for row in evaluation["lengths"].values()] == [1.0] * 3
        assert evaluation["decoding"]["max_tokens"] == 4

    def test_loss_and_accuracy_are_those_of_reading_step_by_step(self, trained, evaluated):
        run = trained()
        evaluation, _, _ = evaluated(run, "lengths=16")
        loaded = load_run(str(run))
        word = loaded.grammar_with(max_length=16).encode(["a" * 8 + "b" * 8])[0, :17].tolist()
        losses, hits, state = [], [], loaded.model.init_state(1)
        for token, target in zip([0, *word], word):
            logits, state = loaded.model.step(torch.tensor([token]), state)
            losses.append(-logits[0].log_softmax(0)[target].item())
            hits.append(logits[0].argmax().item() == target)
        row = evaluation["lengths"]["16"]
        assert row["loss"] == pytest.approx(sum(losses) / 17, rel=1e-4)
        assert row["accuracy"] == pytest.approx(sum(hits) / 17)

    def test_a_context_without_weights_grows_with_the_words(self, trained, evaluated):
        run = trained("model=xlstm", "model.num_blocks=2", "model.embedding_dim=8", "trainer.max_steps=2")
        evaluation, _, out = evaluated(run, "lengths=48", "max_new_tokens=99")
        assert evaluation["notes"] == []
        assert evaluation["lengths"]["48"]["loss"] > 0
        assert evaluation["longer"]["grammatical_accuracy"] == evaluation["lengths"]["48"]["grammatical_accuracy"]
        assert "reads at most" not in out

    def test_a_run_whose_weights_diverged_is_refused_in_one_line(self, trained, call):
        run = trained("optimizer=sgd", "optimizer.lr=1e30", "scheduler=constant", "decoding=sample")
        status, out, err = call(main, f"run={run}", "max_length_factor=0")
        assert (status, out) == (2, "")
        assert err.startswith("error: m") and err.endswith("a lower lr\n") and err.count("\n") == 1

    def test_the_output_names_what_exceeds_the_context(self, trained, evaluated):
        evaluation, _, out = evaluated(trained("model=linear"), "max_new_tokens=99")
        assert "linear reads at most 13 tokens: lengths above 12 are omitted" in out
        assert "linear reads at most 13 tokens: prompts of 9 get at most 5 new ones" in out
        assert list(evaluation["lengths"]) == ["2", "6", "8", "12"]

    def test_lengths_without_words_are_replaced_by_shorter_ones(self, trained, evaluated):
        evaluation, _, out = evaluated(trained(), "lengths=1,13,17")
        assert list(evaluation["lengths"]) == ["12", "16"]
        assert "aNbN has no words of length 13: 12 instead" in out
        assert "aNbN has no words of length 1: omitted" in out

    @pytest.mark.parametrize("name", LANGUAGES)
    @pytest.mark.parametrize("length", [6, 12, 24])
    def test_words_have_the_length_and_are_grammatical(self, name, length):
        def grammar(max_length):
            return get_grammar(name, max_length, test_prompt_length=2)

        length += getattr(grammar(12), "step", 1) - 1  # words with an odd number of inputs, = and an answer
        words = words_of_length(grammar(12), grammar, length, 20, generator(0))
        assert 1 <= len(words) <= 20
        symbols = words[:, 1:-1]
        assert symbols.shape[1] == length and bool((symbols >= 3).all())
        assert grammar(length + 2).judge(words[:, 1:])["grammatical"].all()

    def test_evaluation_lengths(self):
        assert evaluation_lengths(32, 4) == [8, 16, 24, 32, 48, 64, 96, 128]
        assert evaluation_lengths(32, 1.25) == [8, 16, 24, 32, 40]
        assert evaluation_lengths(12, 0) == []


def test_a_seed_determines_the_draws_and_nothing_is_overwritten(trained, evaluated, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained("grammar=L1"), run)
    sampled = ["decoding=sample", "prompt_length=4", "lengths=10,24"]
    before = contents(run)
    _, first, _ = evaluated(run, *sampled)
    before |= contents(first)
    _, second, _ = evaluated(run, *sampled)
    _, other, _ = evaluated(run, *sampled, "seed=1")
    now = contents(run)
    assert {path: now[path] for path in before} == before
    for name in ("completions.csv", "lengths.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes() != (other / name).read_bytes()


ERRORS = {
    "": "run=null: must be set: the run's folder",
    "rn=x": "rn=x: no such key; did you mean run?",
    "run": "run=: needs a value",
    "run=nowhere": "run=nowhere: there is no such folder",
    "run={tests}": "holds no config.yaml",
    "run={run} --lengths=3": "--lengths=3: no such key; did you mean lengths?",
    "run={run} seed=1 seed=2": "seed=2: is given twice; give it once",
    "run={run} seed=x": "seed=x: must be int",
    "run={run} seed=-1": "seed=-1: must be from 0",
    "run={run} prompt_length=4,x": "prompt_length=4,x: must be ints separated by commas",
    "run={run} prompt_length=": "prompt_length=: must be ints",
    "run={run} prompt_length=0": "prompt_length=0: must be greater than 0",
    "run={run} prompt_length=13": "prompt_length=13: must be from 1 to max_length=12",
    "run={run} max_new_tokens=0": "max_new_tokens=0: must be greater than 0",
    "run={run} decoding=greddy": "decoding=greddy: did you mean greedy?",
    "run={run} temperature=0.5": "temperature=0.5: greedy decoding has none; set decoding=sample",
    "run={run} decoding=sample temperature=nan": "temperature=nan: must be greater than 0",
    "run={run} samples=0": "samples=0: must be greater than 0",
    "run={run} samples=2": "samples=2: greedy decoding gives one completion per prompt; set decoding=sample",
    "run={run} lengths=0": "lengths=0: must be greater than 0",
    "run={run} max_length_factor=-1": "max_length_factor=-1.0: must be from 0",
}


class TestErrors:
    @pytest.mark.parametrize(("arguments", "message"), ERRORS.items())
    def test_one_line_exit_2_and_nothing_written(self, trained, call, tmp_path, arguments, message):
        run = tmp_path / "run"
        shutil.copytree(trained("model=oracle"), run, ignore=shutil.ignore_patterns("evaluations"))
        before = contents(run)
        words = [word.format(run=run, tests=tmp_path) for word in arguments.split()]
        status, out, err = call(main, *words)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ")
        assert message in err
        assert contents(run) == before and not (run / "evaluations").exists()

    def test_errors_do_not_wait_for_torch(self, tmp_path):
        script = (
            "import sys; from rule_extrapolation.cli.evaluate import main\n"
            "try: main()\n"
            "finally: print('torch' in sys.modules)"
        )
        for words, status in {("--help",): 0, ("run=nowhere",): 2}.items():
            command = [sys.executable, "-c", script, *words]
            done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
            assert (done.returncode, done.stdout.splitlines()[-1]) == (status, "False")


class TestLoading:
    @pytest.fixture
    def run(self, trained, tmp_path):
        return shutil.copytree(trained(), tmp_path / "copy")

    def test_the_best_weights_or_else_the_last(self, run):
        best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        loaded = load_run(str(run))
        assert not loaded.model.training
        assert all(torch.equal(best[f"model.{name}"], value) for name, value in loaded.model.state_dict().items())
        (run / "checkpoints" / "best.ckpt").unlink()
        assert load_run(str(run)).checkpoint.name == "last.ckpt"

    def test_no_checkpoint(self, run):
        shutil.rmtree(run / "checkpoints")
        with pytest.raises(ConfigError, match=r"run=.*: holds no checkpoints/best.ckpt or last.ckpt"):
            load_run(str(run))

    def test_a_checkpoint_of_another_model(self, run, trained):
        shutil.copy(trained("model=linear") / "checkpoints" / "best.ckpt", run / "checkpoints" / "best.ckpt")
        with pytest.raises(ConfigError, match=r"run=.*: checkpoints/best.ckpt is not a checkpoint of the model"):
            load_run(str(run))

    def test_an_invalid_configuration(self, run):
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("hidden_dim", "hiden_dim"))
        with pytest.raises(ConfigError, match=r"config.yaml cannot be used: model.hiden_dim=.*did you mean hidden_dim"):
            load_run(str(run))

    def test_a_resumed_run_does_not_need_the_run_it_continued(self, run):
        text = (run / "config.yaml").read_text()
        assert "resume: null" in text
        (run / "config.yaml").write_text(text.replace("resume: null", "resume: runs/gone"))
        assert load_run(str(run)).grammar.name == "aNbN"
