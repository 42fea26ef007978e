"""Compare n-gram models with naive_ngrams and nltk, and the neural n-gram model with its equation."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, config, read_metrics, read_results
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_ngrams import NaiveNGrams

from rule_extrapolation import ops
from rule_extrapolation.cli import evaluate
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.random import generator
from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL, PAD, SOS
from rule_extrapolation.experiment.assembling import assemble
from rule_extrapolation.experiment.trained_run import load_run
from rule_extrapolation.grammars import get_grammar
from rule_extrapolation.models.ffnn import FFNN
from rule_extrapolation.models.ngram import SMOOTHINGS, NGramLM
from rule_extrapolation.models.smoothing import discounts
from rule_extrapolation.ops import ngrams

NUM_TOKENS, NUM_WORDS = 7, 5  # SOS and PAD are never predicted
WORDS = [EOS, *range(FIRST_SYMBOL, NUM_TOKENS)]


def counted(rows, held_out=None, num_tokens=NUM_TOKENS, **arguments):
    model = NGramLM(num_tokens, **arguments).eval()
    model.fit_counts([rows], [rows if held_out is None else held_out])
    return model


@pytest.fixture(scope="module")
def words():
    """Training, validation and test words of L5, and rows that are not words."""
    grammar = get_grammar("L5", max_length=10)
    train, val, test = (grammar.sample(n, generator(i)) for i, n in enumerate((60, 30, 8)))
    strings = torch.randint(FIRST_SYMBOL, NUM_TOKENS, (8, 12), generator=generator(3))
    strings[::2, 0] = SOS
    return train, val, test, strings


class TestAgainstDictionaries:
    @pytest.mark.parametrize("smoothing", SMOOTHINGS)
    @pytest.mark.parametrize(
        "arguments",
        [
            {"order": 1},
            {"order": 2},
            {"order": 4},
            {"order": 3, "min_count": 3},
            {"order": 3, "min_count": [2, 2, 6], "discount": 0.4, "k": 2.0},
        ],
        ids=str,
    )
    def test_every_probability(self, words, smoothing, arguments):
        train, val, *others = words
        model = counted(train, val, smoothing=smoothing, **arguments)
        plain = NaiveNGrams(
            train.tolist(), val.tolist(), num_words=NUM_WORDS, smoothing=smoothing,
            **{**arguments, "min_count": model.smoothing.min_count},
        )  # fmt: skip
        for rows in others:
            probabilities = model(rows).exp()
            for b, row in enumerate(rows.tolist()):
                for t in range(len(row)):
                    context = tuple(row[max(0, t - model.order + 2) : t + 1])
                    expected = torch.zeros(NUM_TOKENS)
                    if row[t] in (EOS, PAD):
                        expected[PAD] = 1
                    else:
                        for word in WORDS:
                            expected[word] = plain.probability(word, context)
                    torch.testing.assert_close(probabilities[b, :, t], expected, rtol=1e-5, atol=1e-6)

    def test_rows_without_sos(self):
        """As in the chunks of a text."""
        text = torch.randint(FIRST_SYMBOL, NUM_TOKENS, (1, 400), generator=generator(0)) ** 2 % 4 + FIRST_SYMBOL
        pieces = text[:, :385].unfold(1, 17, 16)[0]
        model = counted(pieces, order=3)
        plain = NaiveNGrams(pieces.tolist(), [], 3, NUM_WORDS, "kneser_ney")
        probabilities = model(pieces[:2]).exp()
        for t in range(16):
            context = tuple(pieces[0, max(0, t - 1) : t + 1].tolist())
            expected = [plain.probability(word, context) for word in WORDS]
            torch.testing.assert_close(probabilities[0, WORDS, t], torch.tensor(expected), rtol=1e-5, atol=1e-6)

    def test_modified_discounts(self):
        """The words above contain too few rare n-grams to estimate them."""
        counts = torch.tensor([1] * 40 + [2] * 14 + [3] * 8 + [4] * 5 + [9] * 30)
        y = 40 / (40 + 2 * 14)
        expected = (1 - 2 * y * 14 / 40, 2 - 3 * y * 8 / 14, 3 - 4 * y * 5 / 8)
        assert discounts(counts) == pytest.approx(expected)


class TestAgainstNLTK:
    """Compare perplexities on English text with an independent implementation that counts the same n-grams."""

    ORDER = 3

    @pytest.fixture
    def text(self):
        train = (ROOT / "README.md").read_text()[:4000]
        # The beginning is repeated at the end, so that some token precedes every n-gram.
        return train + train[: self.ORDER], train[-600:] + "zzz of another text, qqq"

    def nltk_ngrams(self, text):
        return [text[t - k : t + 1] for t in range(1, len(text)) for k in range(self.ORDER) if t >= k]

    @pytest.mark.parametrize(
        ("smoothing", "arguments", "seen"),
        [
            ("mle", {}, True),
            ("laplace", {}, False),
            ("add_k", {"k": 0.3}, False),
            ("kneser_ney", {"discount": 0.6}, False),
        ],
    )
    def test_perplexity(self, text, smoothing, arguments, seen):
        from nltk import lm

        class KneserNey(lm.smoothing.KneserNey):
            """nltk does not discount unigrams. Ours are interpolated with the uniform distribution."""

            def unigram_score(self, word):
                count, total = self._continuation_counts(word)
                return (max(count - self.discount, 0) + self.discount * types / len(self.vocab)) / total

        train, test = text
        test = train[500:900] if seen else "".join(c for c in test if c in train)
        theirs = {
            "mle": lm.MLE,
            "laplace": lm.Laplace,
            "add_k": lambda order: lm.Lidstone(0.3, order),
            "kneser_ney": lambda order: lm.KneserNeyInterpolated(order, discount=0.6),
        }[smoothing](self.ORDER)
        theirs.fit([[tuple(ngram) for ngram in self.nltk_ngrams(train)]], list(train))
        types = len(set(train))
        if smoothing == "kneser_ney":
            theirs.estimator = KneserNey(theirs.vocab, theirs.counts, self.ORDER, discount=0.6)
        full = [tuple(test[t - self.ORDER + 1 : t + 1]) for t in range(self.ORDER - 1, len(test))]

        ids = {symbol: FIRST_SYMBOL + i for i, symbol in enumerate(sorted(set(train)))}
        assert len(theirs.vocab) == types + 1  # their <UNK> corresponds to our EOS, which never occurs
        rows, test_row = (torch.tensor([[ids[symbol] for symbol in part]]) for part in (train, test))
        model = counted(rows, num_tokens=FIRST_SYMBOL + types, order=self.ORDER, smoothing=smoothing, **arguments)
        losses = F.cross_entropy(model(test_row[:, :-1]), test_row[:, 1:], reduction="none")[0, self.ORDER - 2 :]
        assert len(losses) == len(full)
        assert losses.mean().exp().item() == pytest.approx(theirs.perplexity(full), rel=1e-4)


class TestDistribution:
    @settings(deadline=None, max_examples=200)
    @given(
        rows=st.lists(st.lists(st.integers(FIRST_SYMBOL, 6), max_size=8), min_size=1, max_size=8),
        prompt=st.lists(st.integers(0, NUM_TOKENS - 1), min_size=1, max_size=6),
        smoothing=st.sampled_from(SMOOTHINGS),
        order=st.integers(1, 5),
        min_count=st.integers(1, 3),
        discount=st.sampled_from([None, 0.0, 0.5, 0.99]),
    )
    def test_sums_to_one_in_every_context(self, rows, prompt, smoothing, order, min_count, discount):
        framed = [torch.tensor([[SOS, *row, EOS, PAD]]) for row in rows]
        model = NGramLM(NUM_TOKENS, order, smoothing, discount=discount, min_count=min_count)
        model.fit_counts(framed, framed[::2])
        logits = model(torch.tensor([prompt]))
        assert logits.isfinite().all()
        torch.testing.assert_close(logits.exp().sum(1), torch.ones(1, len(prompt)))
        torch.testing.assert_close(logits.softmax(1), logits.exp())

    @pytest.mark.parametrize("smoothing", SMOOTHINGS)
    def test_the_framing_of_rows_is_certain(self, words, smoothing):
        model = counted(words[0], words[1], order=3, smoothing=smoothing)
        following = model(torch.tensor([[SOS, 3, 4, EOS, PAD, PAD]])).exp()[0]
        assert (following[PAD, 3:] == 1).all()
        assert (following[[SOS, PAD], :3] < 1e-30).all()
        assert (following[EOS, :3] > 0).all() or smoothing == "mle"

    def test_mle_has_the_lowest_loss_on_its_training_data(self, words):
        train, val, *_ = words
        losses = {
            smoothing: F.cross_entropy(counted(train, val, smoothing=smoothing)(train[:, :-1]), train[:, 1:]).item()
            for smoothing in SMOOTHINGS
        }
        assert losses["mle"] == min(losses.values())

    def test_weights_fit_the_held_out_rows(self, words):
        """Weights that are fitted to rows of another kind have a lower loss on these rows."""
        train, _, _, strings = words
        others = F.pad(strings[::2], (0, 1), value=EOS)
        fits, fits_not = (counted(train, held_out, smoothing="interpolation") for held_out in (others, train))
        own, other = (F.cross_entropy(m(others[:, :-1]), others[:, 1:]).item() for m in (fits, fits_not))
        assert own < other - 0.01


class TestCounting:
    def test_batches_are_counted_as_one(self, words, monkeypatch):
        train, val, test, _ = words
        at_once = counted(train, val, order=4)
        monkeypatch.setattr(ops.ngrams, "MOST_UNGROUPED", 50)
        pieces = NGramLM(NUM_TOKENS, order=4).eval()
        pieces.fit_counts(train.split(7), val.split(7))
        assert torch.equal(pieces(test), at_once(test))

    def test_keys_of_many_words_and_long_contexts(self):
        """200,000^6 keys exceed 64 bits."""
        rows = torch.randint(FIRST_SYMBOL, 200_000, (2, 300), generator=generator(0))
        rows = rows[torch.tensor([0, 1, 0])]
        found, counts = ngrams.count_ngrams([rows], 6, 200_000)
        assert sorted(counts.tolist()) == [1] * 299 + [2] * 299
        different = {tuple(reversed(row[t - 5 : t + 1])) for row in rows.tolist() for t in range(5, 300)}
        assert {tuple(ngram) for ngram in found.tolist() if ngrams.NONE not in ngram} == different
        model = counted(rows, num_tokens=200_000, order=6, smoothing="mle")
        assert model(rows[:1, :20]).argmax(1)[0, 5:].tolist() == rows[0, 6:21].tolist()

    def test_pruning_keeps_fewer(self, words):
        sizes = [len(counted(words[0], order=4, min_count=n).probabilities_3) for n in (1, 2, 4)]
        assert sizes[0] > sizes[1] > sizes[2] > 0

    def test_tables_are_in_the_state_dict(self, words, tmp_path):
        train, val, test, _ = words
        model = counted(train, val, order=3)
        torch.save(model.state_dict(), tmp_path / "tables.pt")
        other = NGramLM(NUM_TOKENS, order=3).eval()
        assert not torch.equal(other(test), model(test))
        other.load_state_dict(torch.load(tmp_path / "tables.pt", weights_only=True))
        assert torch.equal(other(test), model(test))
        with pytest.raises(RuntimeError, match="Unexpected key"):
            NGramLM(NUM_TOKENS, order=2).load_state_dict(model.state_dict())


class TestRuns:
    def test_its_run_folder_is_that_of_a_trained_model(self, trained):
        run, other = trained("model=ngram", "grammar=L5"), trained("model=ffnn", "grammar=L5")
        results, others = read_results(run), read_results(other)
        assert results.keys() == others.keys()
        for section in ("at_best_validation", "test", "seconds"):
            assert results[section].keys() == others[section].keys()
        assert (results["status"], results["tested"], results["num_parameters"]) == ("finished", "best", 0)
        assert (results["baseline"], others["baseline"]) == (True, False)
        assert results["at_best_validation"]["Val/loss"] == results["over_training"]["Val/loss"]
        validations = [row for row in read_metrics(run) if "Val/loss" in row]
        assert [row["Val/loss"] for row in validations] == [results["over_training"]["Val/loss"]]

    def test_it_counts_the_training_words(self, trained):
        run = load_run(str(trained("model=ngram", "grammar=L5")))
        data = assemble(config(run.folder, "model=ngram", "grammar=L5")).data
        rows, val, test = (data.words(split) for split in range(3))
        model = counted(rows, val)
        torch.testing.assert_close(run.model(test), model(test))
        loss = F.cross_entropy(model(test[:, :-1]), test[:, 1:]).item()
        assert read_results(run.folder)["test"]["Test/loss"] == pytest.approx(loss, rel=1e-5)

    def test_evaluating_it_again_gives_the_same_figures(self, trained, call, tmp_path):
        run = trained("model=ngram", "grammar=L5")
        assert call(evaluate.main, f"run={run}", "max_length_factor=0")[0] == 0
        [path] = run.glob("evaluations/*/evaluation.json")
        again, results = json.loads(path.read_text()), read_results(run)
        [at_length] = again["prompt_length"].values()
        assert at_length["test"].items() <= results["test"].items()

    def test_it_cannot_be_resumed(self, trained, cli):
        run = trained("model=ngram", "grammar=L5")
        for key in ("resume", "ckpt"):
            status, _, err = cli("model=ngram", "grammar=L5", f"{key}={run}")
            assert (status, err) == (2, f"error: {key}={run}: ngram is counted again in seconds; leave {key} out\n")

    def test_a_sweep_skips_finished_runs(self, cli, tmp_path):
        sweep = ["-m", "model=ngram", "model.smoothing=mle,backoff", "grammar=L5", "logger=csv", "data.num_train=32"]
        sweep += ["data.max_length=12", "data.num_val=32", "data.num_test=32"]
        assert cli(*sweep)[0] == 0
        status, out, _ = cli(*sweep)
        assert status == 0 and "2 skipped" in out
        assert len(list(tmp_path.rglob("best.ckpt"))) == 2

    def test_the_masses_of_its_strings_are_logged(self, train):
        logged = [row for row in read_metrics(train("model=ngram", "callbacks=dynamics")) if "Dynamics/longer" in row]
        [masses] = [{name: row[name] for name in row if name.startswith("Dynamics/")} for row in logged]
        assert math.fsum(masses.values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (NGramLM, {"order": 0}, "order=0: must be greater than 0"),
        (NGramLM, {"smoothing": "kneserney"}, "smoothing=kneserney: did you mean kneser_ney?"),
        (NGramLM, {"k": 0.0}, "k=0.0: must be greater than 0"),
        (NGramLM, {"discount": 1.0}, "discount=1.0: must be at least 0 and less than 1"),
        (NGramLM, {"min_count": 0}, "min_count=0: must be 1 or more"),
        (NGramLM, {"min_count": [1, 2]}, "min_count=[1, 2]: must be one number, or one for each order from 1 to 3"),
        (NGramLM, {"min_count": [2, 1, 1]}, "min_count=[2, 1, 1]: must be 1 or more, and must not descend"),
        (FFNN, {"order": 1}, "order=1: must be 2 or more"),
        (FFNN, {"hidden_dim": 0}, "hidden_dim=0: must be greater than 0"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(model, arguments, message):
    with pytest.raises(ConfigError) as error:
        model(NUM_TOKENS, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("direct", [True, False])
def test_ffnn_is_the_equation_of_bengio_et_al(direct):
    torch.manual_seed(0)
    model = FFNN(NUM_TOKENS, order=4, embedding_dim=3, hidden_dim=5, direct=direct)
    tokens = torch.randint(0, NUM_TOKENS, (2, 6))
    for b, row in enumerate(tokens.tolist()):
        for t in range(6):
            context = [NUM_TOKENS] * (3 - len(row[: t + 1])) + row[max(0, t - 2) : t + 1]
            x = torch.cat([model.embedding.weight[token] for token in context])
            y = model.head.bias + model.head.weight @ (model.hidden.bias + model.hidden.weight @ x).tanh()
            y = y + (model.direct.weight @ x if direct else 0)
            torch.testing.assert_close(model(tokens)[b, :, t], y)
