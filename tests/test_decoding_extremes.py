"""Decoding at extreme temperatures and from logits that are infinite or nan."""

import math

import pytest
import torch

from rule_extrapolation.cli.complete import main
from rule_extrapolation.cli.evaluate import main as evaluate
from rule_extrapolation.core.errors import UndefinedPrediction
from rule_extrapolation.experiment.trained_run import load_run
from rule_extrapolation.inference.decoding import Greedy, Sample
from rule_extrapolation.inference.evaluation import probabilities
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.runs.run_folder import read_results

PROMPTS = torch.zeros(500, 1, dtype=torch.long)
NUM_TOKENS = 5


class SameLogits(LanguageModel):
    """Predicts the same whatever it has read."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def init_state(self, batch_size):
        return None

    def advance(self, tokens, state):
        return self.logits.expand(*tokens.shape, -1), None


def drawn(decoder, *logits):
    """The tokens that follow, of many draws."""
    return set(decoder(SameLogits(*logits), PROMPTS)[:, 1].tolist())


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-39, 1.1e-38, 1.2e-38, 1e-30, 1e-6])
def test_a_tiny_temperature_picks_the_most_probable_token(temperature):
    assert drawn(Sample(1, temperature), 0.0, 1.0, 2.0, 2.0001, -5.0) == {3}
    assert drawn(Sample(1, temperature), -1e30, -2e30, -3e38, -3e38, -3e38) == {0}


def test_a_huge_temperature_draws_every_token():
    assert drawn(Sample(1, 1e300), 0.0, 1.0, 2.0, 3e38, -3e38) == set(range(5))


@pytest.mark.parametrize(
    "decoder", [Greedy(1), Sample(1), Sample(1, 100.0), Sample(1, 1e-39)], ids=["greedy", "sample", "hot", "cold"]
)
class TestInfiniteLogits:
    def test_minus_infinity_is_never_drawn(self, decoder):
        tokens = drawn(decoder, -math.inf, 1.0, -math.inf, 1.0, -math.inf)
        assert tokens <= {1, 3}
        assert drawn(decoder, -math.inf, -math.inf, -3e38, -math.inf, -math.inf) == {2}

    def test_a_single_infinite_logit_is_that_token(self, decoder):
        assert drawn(decoder, 0.0, 3e38, math.inf, -math.inf, 0.0) == {2}

    @pytest.mark.parametrize(
        "logits",
        [(math.nan, 1, 2, 3, 4), (math.inf, 1, math.inf, 3, 4), (-math.inf,) * 5, (math.nan, math.inf, 0, 0, 0)],
    )
    def test_no_token_follows_from_undefined_logits(self, decoder, logits):
        with pytest.raises(UndefinedPrediction, match=r"^model=SameLogits: its logits are nan or infinite.*lower lr$"):
            drawn(decoder, *map(float, logits))


def test_one_undefined_row_is_enough():
    class OneRow(SameLogits):
        def advance(self, tokens, state):
            logits = super().advance(tokens, state)[0].clone()
            logits[-1] = math.nan
            return logits, None

    with pytest.raises(UndefinedPrediction):
        Greedy(1)(OneRow(0.0, 1.0), PROMPTS)


def test_the_probability_of_a_completion_by_an_infinite_logit():
    completions = torch.tensor([[0, 2, 2], [0, 2, 3]])
    p = probabilities(SameLogits(0.0, 0.0, math.inf, 1.0, 2.0), completions, 1)
    assert p.tolist() == [1, 0]


def test_draws_at_ordinary_temperatures_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0])
    tokens = Sample(1, 2.0)(SameLogits(*logits.tolist()), PROMPTS.repeat(40, 1))[:, 1]
    shares = tokens.bincount(minlength=3) / len(tokens)
    torch.testing.assert_close(shares, (logits / 2).softmax(0), atol=0.01, rtol=0)


@pytest.fixture
def diverged(trained):
    return trained("optimizer=sgd", "optimizer.lr=1e30", "scheduler=constant", "trainer.max_steps=3")


def test_a_diverged_model_completes_nothing(diverged, call):
    results = read_results(diverged)
    assert results["status"] == "diverged"
    assert not [name for name in results["test"] if name.endswith(("/rule_1_accuracy", "/finished_accuracy"))]
    line = "error: model=MinLSTM: its logits are nan or infinite, and predict no token; "
    for main_of, arguments in ((main, ["prompt=ab"]), (main, ["prompt=ab", "temperature=2"]), (evaluate, [])):
        status, _, err = call(main_of, f"run={diverged}", *arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith(line)
    with pytest.raises(UndefinedPrediction):
        load_run(diverged).complete("ab")


def test_the_oracle_never_draws_an_impossible_token(trained):
    run = load_run(trained("model=oracle"))
    decoder = Sample(8, 1e6)
    words = decoder(run.model, torch.tensor([[0, 3, 3, 4]] * 200))  # aab, which only b and EOS complete
    assert set(words[:, 4:6].unique(dim=0).flatten().tolist()) == {4, 1}
