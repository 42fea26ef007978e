"""Models on text: tokenisation, what is predicted, and the commands from training to completions and reports."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_metrics, read_results
from hydra import compose, initialize_config_dir
from naive_ngrams import NaiveNGrams

from rule_extrapolation.cli import complete, evaluate, report
from rule_extrapolation.config.composing import CONF_DIR
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import EOS, PAD, SOS
from rule_extrapolation.data import text as reading
from rule_extrapolation.data.text import PARTS, TextSettings, read_text, unigram_loss
from rule_extrapolation.data.text_data import Chunks, TextDataModule, TextTask
from rule_extrapolation.data.vocabulary import LEVELS, UNK, Vocabulary
from rule_extrapolation.experiment.assembling import assemble
from rule_extrapolation.experiment.run import run
from rule_extrapolation.experiment.seeds import reason_not_to_stack
from rule_extrapolation.experiment.sweep import record_failure
from rule_extrapolation.experiment.trained_run import load_run
from rule_extrapolation.inference.decoding import Greedy
from rule_extrapolation.models.ffnn import FFNN
from rule_extrapolation.models.lstm import LSTM_LLM
from rule_extrapolation.models.mamba import MambaLM
from rule_extrapolation.models.mingru import MinGRU
from rule_extrapolation.models.minlstm import MinLSTM
from rule_extrapolation.training.text import TextModeling

# A run that takes about a second.
SHORT = ["data=text", "logger=csv", "trainer.max_steps=2", "trainer.log_every_n_steps=1", "data.max_length=8",
         "data.batch_size=4", "decoding.max_new_tokens=5"]  # fmt: skip
MODELS = ("lstm", "minlstm", "mingru", "mamba", "xlstm", "transformer", "ffnn", "ngram")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path, content):
    path.write_text(content, newline="")
    return str(path)


@pytest.fixture
def verse(tmp_path):
    """Lines of random words, with the non-ASCII characters ä, ∀ and 𝄞."""
    words = random.Random(0).choices(["to", "be", "or", "not,", "ä", "∀𝄞", "that's", "(is)"], k=600)
    lines = [" ".join(words[i : i + 6]) for i in range(0, 600, 6)]
    return write(tmp_path / "verse.txt", "\n".join(lines) + "\n")


def settings(level="char", **changed):
    default = {"val_fraction": 0.1, "test_fraction": 0.1, "max_vocabulary": 1000, "min_count": None, "unknown": None}
    return TextSettings(level, **default | changed)


@pytest.fixture
def train(tmp_path):
    """Run one configuration in this process. Returns its run folder."""

    def train(*overrides, folder="run"):
        (tmp_path / folder).mkdir()
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            run(compose("config", [*SHORT, f"run_dir={tmp_path / folder}", *overrides]))
        return tmp_path / folder

    return train


class TestReading:
    @pytest.mark.parametrize("block", [5, 2**22])
    @pytest.mark.parametrize("level", LEVELS)
    def test_the_parts_contain_all_tokens_of_the_file_in_order(self, verse, level, block, monkeypatch):
        monkeypatch.setattr(reading, "BLOCK", block)
        text = read_text(verse, settings(level), None)
        parts = [[text.vocabulary.name(token) for token in text.tokens(part)] for part in PARTS]
        content = Path(verse).read_bytes().decode()
        assert [*itertools.chain(*parts)] == LEVELS[level].split(content)
        assert sum(text.num(part, "characters") for part in PARTS) == len(content)
        assert [text.num(part) for part in PARTS] == [len(part) for part in parts]
        assert 0.75 < len(parts[0]) / sum(map(len, parts)) < 0.9
        if level == "char":
            assert all(part[-1] == "\n" for part in parts)

    def test_without_line_ends_parts_begin_at_characters(self, tmp_path):
        path = write(tmp_path / "x.txt", "äöü" * 1000)
        text = read_text(path, settings(val_fraction=0.1234, test_fraction=0.1111), None)
        assert "".join(text.vocabulary.decode(text.tokens(part)) for part in PARTS) == "äöü" * 1000

    def test_a_distant_line_end_does_not_move_a_part(self, tmp_path):
        """The file is a single line."""
        path = tmp_path / "line.txt"
        path.write_text("ab" * 1000 + "\n")
        text = read_text(path, settings(unknown=True), None)
        assert [text.num(part) for part in PARTS] == [1600, 200, 201]

    def test_the_vocabulary_is_the_frequent_words_of_the_training_part(self, tmp_path):
        path = write(tmp_path / "x.txt", "b a b a c b d\n" * 8 + "a e f\n" * 8)
        text = read_text(path, settings("word", val_fraction=0.2, test_fraction=0.1, max_vocabulary=3), None)
        assert text.vocabulary.symbols == (UNK, "b", "a", "c")
        assert text.vocabulary.decode(text.tokens("test")).split()[-3:] == ["a", UNK, UNK]
        assert text.num("test", "unknown") == sum(text.tokens("test") == text.vocabulary.unknown) > 0
        frequent = read_text(path, settings("word", min_count=9), None)
        assert set(frequent.vocabulary.symbols) == {UNK, "b", "a"}

    def test_words_that_occur_once_are_unknown_in_training_too(self, tmp_path):
        text = read_text(write(tmp_path / "x.txt", "once " + "often " * 50), settings("word"), None)
        assert text.vocabulary.symbols == (UNK, "often")
        assert text.num("training", "unknown") == 1

    def test_tokens_that_only_the_test_part_contains_are_an_error_or_unknown(self, tmp_path):
        path = write(tmp_path / "x.txt", "abc\n" * 100 + "xyz\n")
        with pytest.raises(ConfigError, match="the test part contains 'x', 'y', 'z', which the vocabulary lacks"):
            read_text(path, settings(), None)
        text = read_text(path, settings(unknown=True), None)
        assert text.vocabulary.decode(text.tokens("test")[-4:]) == f"{UNK}{UNK}{UNK}\n"

    @pytest.mark.parametrize(("symbols", "dtype"), [(253, np.uint8), (254, np.uint16)])
    def test_tokens_are_mapped_into_memory_as_the_smallest_integers(self, tmp_path, symbols, dtype):
        content = "".join(map(chr, range(0x100, 0x100 + symbols))) * 20
        text = read_text(write(tmp_path / "x.txt", content), settings(), None)
        tokens = text.tokens("training")
        assert isinstance(tokens, np.memmap)
        assert (tokens.dtype, tokens.mode) == (dtype, "r")
        assert int(tokens.max()) == symbols + 2

    def test_the_cache_is_by_content_and_settings(self, verse, tmp_path):
        first = read_text(verse, settings(), None)
        copy = write(tmp_path / "sub.txt", Path(verse).read_text())
        written = (first.folder / "training.tokens").stat().st_mtime_ns
        assert read_text(verse, settings(), None) == first
        assert (first.folder / "training.tokens").stat().st_mtime_ns == written
        assert first.folder.parent == tmp_path / "cache" / "rule_extrapolation"
        others = [read_text(verse, settings("word"), None), read_text(verse, settings(min_count=2), None)]
        write(tmp_path / "verse.txt", "other\n" * 99)
        others += [read_text(verse, settings(), None), read_text(copy, settings(), str(tmp_path / "elsewhere"))]
        assert len({first.folder, *(other.folder for other in others)}) == 5
        assert not [path for path in first.folder.parent.iterdir() if path.name.startswith("tmp")]

    def test_the_default_text_has_no_unknown_characters(self):
        text = TextDataModule(batch_size=8).text
        assert text.num("training") > 300_000
        assert "Assert statements are a convenient way" in text.vocabulary.decode(text.tokens("training")[:20_000])
        assert len(text.vocabulary.symbols) > 90
        assert text.vocabulary.unknown is None

    @pytest.mark.parametrize("level", LEVELS)
    def test_unigram_loss(self, verse, level):
        text = read_text(verse, settings(level), None)
        counts = Counter(text.tokens("training").tolist())
        total = sum(counts.values()) + len(text.vocabulary.symbols)
        nats = [-math.log((counts[token] + 1) / total) for token in text.tokens("test").tolist()[1:]]
        assert unigram_loss(text) == pytest.approx(sum(nats) / len(nats))

    def test_words_are_joined_with_the_usual_spaces(self):
        sentence = "That's (as they say) well-known, isn't it?"
        assert LEVELS["word"].join(LEVELS["word"].split(sentence)) == sentence


class TestChunks:
    @pytest.mark.parametrize("streams", [None, 1, 4, 7])
    @pytest.mark.parametrize("n", [2, 9, 41, 100])
    def test_every_token_but_the_first_is_predicted_once_from_the_previous_one(self, n, streams):
        tokens = np.arange(10, 10 + n, dtype=np.uint8)
        chunks = Chunks(tokens, 8, streams)
        rows = chunks[torch.arange(len(chunks))]
        inputs, targets = rows[:, :-1][rows[:, 1:] != PAD], rows[:, 1:][rows[:, 1:] != PAD]
        assert sorted(targets.tolist()) == tokens[1:].tolist()
        assert (targets == inputs + 1).all()
        assert rows.shape[1] == 9

    def test_rows_of_a_batch_continue_those_of_the_previous_batch(self, verse):
        data = TextDataModule(verse, max_length=8, batch_size=4, carry_state=True)
        batches = list(data.train_dataloader())
        assert len(batches) > 50
        assert all((batch[:, -1] == following[:, 0]).all() for batch, following in itertools.pairwise(batches))
        inputs, targets = (torch.cat([batch[:, span] for batch in batches], 1) for span in (slice(-1), slice(1, None)))
        assert inputs[targets != PAD].tolist() == data.text.tokens("training")[:-1].tolist()

    def test_independent_chunks_are_shuffled_on_each_pass(self, verse):
        loader = TextDataModule(verse, max_length=8, batch_size=4).train_dataloader()
        first, second = (torch.cat(list(loader)) for _ in range(2))
        assert (first != second).any()
        assert sorted(first.tolist()) == sorted(second.tolist())


@pytest.mark.parametrize(
    "model",
    [
        lambda n: LSTM_LLM(n, 4, 6, 2, dropout=0.0),
        lambda n: MinLSTM(n, 4, 6, 2),
        lambda n: MinGRU(n, 4, 6, 2),
        lambda n: MambaLM(n, d_model=4, d_state=2, d_conv=3, n_layers=2),
        lambda n: FFNN(n, order=9, embedding_dim=4, hidden_dim=6),
    ],
    ids=["lstm", "minlstm", "mingru", "mamba", "ffnn"],
)
def test_carried_state_is_one_long_forward_pass(model):
    vocabulary = Vocabulary(LEVELS["char"], tuple("abcdef"))
    model = model(vocabulary.num_tokens).double()
    module = TextModeling(model, TextTask("x", vocabulary), None, None, Greedy(1), carry_state=True)
    tokens = torch.randint(3, 9, (3, 20))
    parts = [module.logits(part, "Val", begins=i == 0) for i, part in enumerate(tokens.split(7, 1))]
    torch.testing.assert_close(torch.cat(parts, 2), model(tokens))
    assert not any(t.requires_grad for t in torch.utils._pytree.tree_leaves(module.states) if torch.is_tensor(t))


class TestRuns:
    @pytest.mark.parametrize("model", MODELS)
    def test_every_model_trains_on_text(self, train, verse, model):
        results = read_results(train(f"data.path={verse}", f"model={model}", "data.max_length=12"))
        assert results["status"] == "finished"
        assert {"Test/loss", "Test/perplexity", "Test/bits_per_character", "Test/accuracy"} <= results["test"].keys()
        assert (results["grammar"], results["text"]["level"]) == ("verse", "char")

    @pytest.mark.parametrize("carry", ["true", "false"])
    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("model", ["minlstm", "ffnn", "ngram"])
    def test_figures_are_those_of_reading_token_by_token(self, train, verse, model, level, carry):
        overrides = [f"model={model}", f"data.level={level}", f"data.carry_state={carry}", "data.batch_size=3"]
        folder = train(f"data.path={verse}", *overrides)
        results = read_results(folder)
        model, vocabulary = load_run(str(folder)).model, Vocabulary.load(folder)
        text = read_text(verse, settings(level, max_vocabulary=10_000), None)
        assert vocabulary == text.vocabulary
        tokens = torch.from_numpy(text.tokens("test").astype(int))
        span = -(-(len(tokens) - 1) // 3) if carry == "true" else 8  # tokens between initial states
        nats, hits, state = [], [], None
        for i, (token, target) in enumerate(itertools.pairwise(tokens)):
            state = model.init_state(1) if i % span == 0 else state
            logits, state = model.step(token[None], state)
            nats.append(torch.nn.functional.cross_entropy(logits, target[None]).item())
            hits.append((logits.argmax(1) == target).item())
        loss = sum(nats) / len(nats)
        test = {name.removeprefix("Test/"): value for name, value in results["test"].items()}
        assert test["loss"] == test["objective"] == pytest.approx(loss, rel=1e-5)
        assert test["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        bits = loss / math.log(2) * len(tokens) / text.num("test", "characters")
        assert test["bits_per_character"] == pytest.approx(bits, rel=1e-5)
        assert test["accuracy"] == pytest.approx(sum(hits) / len(hits))
        assert [row["Val/perplexity"] for row in read_metrics(folder) if "Val/perplexity" in row]

    @pytest.mark.parametrize("carry", ["true", "false"])
    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("smoothing", ["kneser_ney", "interpolation"])
    def test_ngrams_agree_with_the_naive_ones(self, train, verse, smoothing, level, carry):
        """N-grams are counted and predicted between initial states, token by token."""
        arguments = ["model=ngram", f"model.smoothing={smoothing}", f"data.level={level}", f"data.carry_state={carry}"]
        folder = train(f"data.path={verse}", "data.batch_size=3", *arguments)
        text = read_text(verse, settings(level, max_vocabulary=10_000), None)

        def pieces(part):
            tokens = text.tokens(part).tolist()
            span = -(-(len(tokens) - 1) // 3) if carry == "true" else 8
            return [tokens[start : start + span + 1] for start in range(0, len(tokens) - 1, span)]

        training, validation, test = map(pieces, PARTS)
        assert any(len(piece) < len(test[0]) for piece in test)  # these rows end in PAD
        plain = NaiveNGrams(training, validation, 3, text.vocabulary.num_tokens - 2, smoothing, min_count=[1, 1, 1])
        nats = [-math.log(plain.probability(token, context)) for context, token in plain.targets(test)]
        figures = read_results(folder)["test"]
        assert len(nats) == text.num("test") - 1
        assert figures["Test/loss"] == pytest.approx(sum(nats) / len(nats), rel=1e-4)
        assert figures["Test/perplexity"] == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-3)

    @pytest.mark.parametrize("carry", ["true", "false"])
    def test_a_resumed_run_has_the_same_curve(self, train, verse, carry):
        common = [f"data.path={verse}", f"data.carry_state={carry}", "trainer.val_check_interval=3"]
        uninterrupted = train(*common, "trainer.max_steps=7", folder="uninterrupted")
        first = train(*common, "trainer.max_steps=3", folder="first")
        second = train(*common, "trainer.max_steps=7", f"resume={first}", folder="second")
        losses = [row["Train/loss"] for row in read_metrics(uninterrupted) if "Train/loss" in row]
        resumed = [row["Train/loss"] for f in (first, second) for row in read_metrics(f) if "Train/loss" in row]
        assert resumed == losses
        assert read_results(second)["test"] == read_results(uninterrupted)["test"]

    def test_weights_of_another_vocabulary_are_refused(self, train, verse, tmp_path):
        first = train(f"data.path={verse}", folder="first")
        other = write(tmp_path / "other.txt", Path(verse).read_text().replace("ä", "é"))
        with pytest.raises(ConfigError, match="it has another vocabulary"):
            train(f"data.path={other}", f"ckpt={first}", folder="second")

    def test_seeds_are_not_stacked(self, verse):
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose("config", [*SHORT, f"data.path={verse}", "seeds=2", "run_dir=''"])
        assert reason_not_to_stack(cfg, assemble(cfg, device="meta")) == "each run reads the text by itself"


class TestCommands:
    def test_training_completion_and_report(self, cli, call, verse, tmp_path):
        status, out, err = cli(*SHORT, f"data.path={verse}", "hydra.run.dir=first", "data.level=word")
        assert (status, err) == (0, "")
        assert "on verse (words, 16 tokens)" in out
        test = read_results(tmp_path / "first")["test"]
        assert re.search(rf"│ test +│ +{test['Test/loss']:.4f} │ +{test['Test/perplexity']:.4f} │", out)
        assert cli(*SHORT, f"data.path={verse}", "hydra.run.dir=second", "data.carry_state=true")[0] == 0
        (tmp_path / "verse.txt").unlink()

        status, out, err = call(complete.main, "run=first", "prompt=to be what", "samples=2", "temperature=0.8")
        assert (status, err) == (0, "")
        assert "read as <UNK>: 'what'" in out
        [listed] = re.findall(r"^next +(.*)$", out, re.MULTILINE)
        loaded = load_run("first")
        prompt = torch.tensor([loaded.task.vocabulary.encode("to be what")])
        probabilities = loaded.model.prefill(prompt)[0][0].softmax(0)
        named = {loaded.task.vocabulary.name(token): p for token, p in enumerate(probabilities.tolist())}
        shown = re.findall(r"(?:'(.+?)'|\"(.+?)\") (0\.\d+)", listed)
        assert len(shown) == 6
        assert all(named[a or b] == pytest.approx(float(p), abs=6e-4) for a, b, p in shown)
        assert len(re.findall(r"^(greedy|sample) +to be what\|", out, re.MULTILINE)) == 3

        status, out, err = call(complete.main, "run=second", "prompt=to b", "max_new_tokens=30")
        assert (status, err) == (0, "")
        assert len(re.findall(r"^(greedy|sample) +to b\|", out, re.MULTILINE)) == 2
        assert call(complete.main, "run=second", "prompt=", "max_new_tokens=3")[0] == 0
        status, _, err = call(complete.main, "run=second", "prompt=to Q")
        assert status == 2
        assert err.startswith("error: prompt=to Q: 'Q' is not in the vocabulary of verse")

        status, _, err = call(complete.main, "run=second", "prompt=to", "attention=to.png")
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith("error: attention=to.png: verse is a text")

        status, _, err = call(evaluate.main, "run=first")
        assert status == 2
        assert "verse is a text, which has no rules" in err

        status, out, err = call(report.main, "runs=first,second")
        assert (status, err) == (0, "")
        assert f"{test['Test/perplexity']:.4f}" in out
        assert (tmp_path / "report" / "tables" / "verse_word.md").read_text().count("| minlstm | 1 |") == 1
        page = (tmp_path / "report" / "report.html").read_text()
        assert "verse, by char" in page
        assert f"{test['Test/perplexity']:.4f}" in page

    def test_the_report_marks_baselines_and_names_texts_that_failed(self, cli, call, verse, tmp_path):
        for model in ("ngram", "lstm"):
            assert cli(*SHORT, f"data.path={verse}", f"model={model}", f"hydra.run.dir=runs/{model}")[0] == 0
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            failed = compose("config", [*SHORT, f"data.path={verse}", f"run_dir={tmp_path / 'runs' / 'failed'}"])
        (tmp_path / "runs" / "failed").mkdir()
        record_failure(failed, "no memory")
        status, out, _ = call(report.main, "runs=runs")
        assert status == 0
        assert "failed: no memory" in out
        lines = (tmp_path / "report" / "tables" / "verse_char.md").read_text().splitlines()
        rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
        assert rows[2:] == ["lstm", "minlstm", "ngram (baseline)", "unigram"]
        assert "- minlstm: 1 of 1 runs not averaged: 1 failed." in lines
        assert not (tmp_path / "report" / "tables" / "verse.md").exists()

    @pytest.mark.parametrize("level", LEVELS)
    def test_ngrams_complete(self, cli, call, verse, level):
        assert cli(*SHORT, f"data.path={verse}", f"data.level={level}", "model=ngram", "hydra.run.dir=first")[0] == 0
        status, out, err = call(complete.main, "run=first", "prompt=to be", "max_new_tokens=5")
        assert (status, err) == (0, "")
        assert re.search(r"^greedy +to be\|.+", out, re.MULTILINE)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        {
            "data.path=nowhere.txt": "data.path=nowhere.txt: there is no such file",
            "data.path=.": "data.path=.: is a folder",
            "data.path=empty.txt": "data.path=empty.txt: is empty",
            "data.path=binary.txt": "data.path=binary.txt: is not a text file: it contains NUL bytes",
            "data.path=latin.txt": "data.path=latin.txt: is not UTF-8 text",
            "data.path=short.txt": "data.path=short.txt: its training part has 8 characters but needs 33",
            "data.path=unseen.txt": "data.unknown=false: the test part contains 'x', 'y'",
            "data.path=verse.txt grammar=L5": "grammar=parentheses_and_brackets: a text has no grammar",
            "data.path=verse.txt data.level=line": "data.level=line: must be one of char, word",
            "data.path=verse.txt data.test_fraction=0.95": "data.test_fraction=0.95: must be less than 1 - val",
            "data.path=verse.txt data.max_length=0": "data.max_length=0: must be greater than 0",
            "data.path=verse.txt model=xlstm data.carry_state=true": "data.carry_state=true: the model reads at most",
            "data.path=verse.txt model=oracle": "grammar=verse: its exact probabilities are unknown",
            "data.path=verse.txt callbacks=dynamics": "verse has no rules",
            "data.path=verse.txt training=oracle": "verse has no R1",
            "data.path=verse.txt model=seq2seq": "model=seq2seq: trains on a language's prompts and completions",
        }.items(),
    )
    def test_errors_are_one_line(self, cli, verse, tmp_path, arguments, message):
        write(tmp_path / "empty.txt", "\n")
        write(tmp_path / "short.txt", "aaaaaaaaaa")
        write(tmp_path / "unseen.txt", "abc\n" * 100 + "xyxyxyxyxyx\n")
        (tmp_path / "binary.txt").write_bytes(b"text\0" * 100)
        (tmp_path / "latin.txt").write_bytes("käse\n".encode("latin-1") * 100)
        status, out, err = cli(*SHORT, *arguments.split())
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_special_tokens_are_visible():
    vocabulary = Vocabulary(LEVELS["char"], ("a",))
    assert vocabulary.decode([SOS, 3, EOS]) == "<SOS>a<EOS>"
