"""The probability mass of all short strings: its values, what a run logs, and that training is unaffected."""

import itertools
import math

import pytest
import torch
from conftest import SHORT, config, read_metrics
from lightning.pytorch import seed_everything
from offline_wandb import read_run

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import EOS, SOS
from rule_extrapolation.experiment.assembling import assemble
from rule_extrapolation.grammars import get_grammar
from rule_extrapolation.models.linear import LinearLLM
from rule_extrapolation.models.lstm import LSTM_LLM
from rule_extrapolation.models.mamba import MambaLM
from rule_extrapolation.models.minlstm import MinLSTM
from rule_extrapolation.models.oracle import OracleLM
from rule_extrapolation.models.transformer import TransformerDecoder
from rule_extrapolation.models.xlstm import xLSTMLMModel
from rule_extrapolation.training.callbacks.dynamics import Dynamics, categories, log_probabilities, probability_masses

TINY = ["model.embedding_dim=8", "model.hidden_dim=8"]
MODELS = {
    "minlstm": lambda n: MinLSTM(n, 8, 8, 2, dropout=0.5),
    "lstm": lambda n: LSTM_LLM(n, 8, 8, 2, dropout=0.5),
    "transformer": lambda n: TransformerDecoder(n, 8, 2, 2, 16, dropout_p=0.5),
    "transformer-by-row": lambda n: TransformerDecoder(n, 8, 2, 2, 16, positions="by_row"),
    "linear": lambda n: LinearLLM(n, max_data_length=4, embedding_dim=8),
    "mamba": lambda n: MambaLM(n, 4, 2, 2, 1),
    "xlstm": lambda n: xLSTMLMModel(n, 2, 8, [0], 2, context_length=5),
}
NAMES = ("rules_1_and_2", "rule_1_only", "rule_2_only", "neither", "longer")
RULES = {
    "aNbN": (lambda s: s.count("a") == s.count("b"), lambda s: "ba" not in s),
    "baN": (lambda s: s.count("a") % 2 == 0, lambda s: s.startswith("b")),
    "aNbNcN": (lambda s: s.count("a") == s.count("b") == s.count("c"), lambda s: list(s) == sorted(s)),
    "separated_brackets_and_parentheses": (
        lambda s: matched(s, "()") and matched(s, "[]"),
        lambda s: not (set(s) & set("()") and set(s) & set("[]")),
    ),
}


def matched(string, pair):
    depths = list(itertools.accumulate((s == pair[0]) - (s == pair[1]) for s in string))
    return all(depth >= 0 for depth in depths) and [0, *depths][-1] == 0


def strings_up_to(alphabet, length):
    return ["".join(s) for n in range(length + 1) for s in itertools.product(alphabet, repeat=n)]


@torch.no_grad()
def probability(model, grammar, string):
    """The probability of one string, read alone."""
    symbols = [3 + grammar.alphabet.index(symbol) for symbol in string]
    each = model(torch.tensor([[SOS, *symbols]])).double().softmax(1)[0]
    return math.prod(each[token, t].item() for t, token in enumerate([*symbols, EOS]))


def masses_of(model, grammar, max_length):
    return probability_masses(model, grammar.alphabet, max_length, categories(grammar, max_length))


class TestMasses:
    @pytest.mark.parametrize("language", RULES)
    @pytest.mark.parametrize("name", MODELS)
    def test_equal_those_of_one_string_at_a_time(self, name, language):
        torch.manual_seed(0)
        grammar = get_grammar(language, 12)
        model = MODELS[name](grammar.num_tokens).eval()
        strings = strings_up_to(grammar.alphabet, 3)
        expected = [probability(model, grammar, string) for string in strings]
        torch.testing.assert_close(
            log_probabilities(model, grammar.alphabet, 3).exp(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-12
        )
        rule_1, rule_2 = RULES[language]
        sums = dict.fromkeys(NAMES, 0.0)
        for string, p in zip(strings, expected):
            which = (rule_1(string), rule_2(string))
            sums[NAMES[[(True, True), (True, False), (False, True), (False, False)].index(which)]] += p
        sums["longer"] = 1 - sum(expected)
        assert masses_of(model, grammar, 3) == pytest.approx(sums, rel=1e-5, abs=1e-9)

    @pytest.mark.parametrize("language", ["baN", "bbaN", "aNbN", "aNbNcN"])
    def test_of_the_optimal_model_are_those_of_the_language(self, language):
        """Words of up to 6 symbols have half the mass of those up to 12, and other strings have none."""
        grammar = get_grammar(language, 12)
        masses = masses_of(OracleLM(grammar.num_tokens, grammar.process), grammar, 6)
        assert masses == pytest.approx(dict.fromkeys(NAMES, 0.0) | {"rules_1_and_2": 0.5, "longer": 0.5}, abs=1e-6)

    def test_of_a_uniform_model_are_counts(self):
        """Each of the five tokens has probability 1/5, and a string of n symbols has (1/5)^(n + 1)."""
        model = MinLSTM(5, 4, 4, 1)
        for parameter in model.head.parameters():
            parameter.data.zero_()
        masses = masses_of(model, get_grammar("aNbN", 8), 2)
        # "", ab | ba | a b aa bb
        expected = [1 / 5 + 1 / 125, 1 / 125, 2 / 25 + 2 / 125, 0, 1 - 1 / 5 - 2 / 25 - 4 / 125]
        assert masses == pytest.approx(dict(zip(NAMES, expected)))

    @pytest.mark.parametrize(
        ("language", "names"),
        {"abN": {"rule_1_only", "neither", "longer"}, "aNbM": {"rule_2_only", "neither", "longer"}}.items(),
    )
    def test_a_language_with_one_rule_has_the_categories_of_that_rule(self, language, names):
        masses = masses_of(MinLSTM(5), get_grammar(language, 8), 8)
        assert set(masses) == names
        assert sum(masses.values()) == pytest.approx(1)
        assert min(masses.values()) > 0

    def test_reading_in_parts_changes_nothing(self, monkeypatch):
        model = MinLSTM(5)
        whole = log_probabilities(model, "ab", 6)
        monkeypatch.setattr("rule_extrapolation.training.callbacks.dynamics.ROWS", 10)
        torch.testing.assert_close(log_probabilities(model, "ab", 6), whole)

    def test_modes_and_random_state_are_left_as_they_were(self):
        grammar, model = get_grammar("aNbN", 8), MODELS["transformer"](5).train()
        model.layers[0].eval()
        modes, state = [module.training for module in model.modules()], torch.get_rng_state()
        first, again = masses_of(model, grammar, 4), masses_of(model, grammar, 4)
        assert first == again  # without dropout
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)


DROPOUT = ["model=lstm", "model.num_layers=2", "model.dropout=0.5", *TINY]


def dynamics(run):
    return {row["step"]: row for row in read_metrics(run) if "Dynamics/longer" in row}


class TestRuns:
    def test_logged_at_the_start_every_n_steps_and_at_the_end(self, train):
        """The figures are those of the weights after the step: the last step's weights are in last.ckpt."""
        run = train("callbacks=dynamics", "callbacks.dynamics.every_n_steps=2", "trainer.max_steps=5", *TINY)
        logged = dynamics(run)
        assert list(logged) == [0, 2, 4, 5]
        seed_everything(0, verbose=False)
        module = assemble(config(run, *TINY)).module
        for step in (0, 5):
            if step:
                checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
                module.load_state_dict(checkpoint["state_dict"])
            masses = masses_of(module.model, module.grammar, 8)
            assert {name: logged[step][f"Dynamics/{name}"] for name in masses} == pytest.approx(masses, abs=1e-12)
            assert sum(logged[step][f"Dynamics/{name}"] for name in NAMES) == pytest.approx(1)

    def test_goes_to_wandb_too(self, train, tmp_path, monkeypatch):
        import wandb

        for name, value in {"HOME": str(tmp_path), "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}.items():
            monkeypatch.setenv(name, value)
        run = train("logger=wandb", "logger.offline=true", "callbacks=dynamics", *TINY)
        wandb.teardown()  # only then has wandb written all that was logged
        [folder] = run.glob("wandb/offline-run-*")
        rows = [row for row in read_run(folder).history if "Dynamics/longer" in row]
        assert {row["trainer/global_step"]: row["Dynamics/longer"] for row in rows} == {
            step: row["Dynamics/longer"] for step, row in dynamics(run).items()
        }
        assert [row["trainer/global_step"] for row in rows] == [0, 4]

    def test_training_is_the_same_with_and_without(self, train):
        plain = read_metrics(train("grammar=L1", *DROPOUT, folder="plain"))
        with_it = ["callbacks=dynamics", "callbacks.dynamics.every_n_steps=1"]
        watched = read_metrics(train("grammar=L1", *DROPOUT, *with_it, folder="watched"))
        rest = [{key: value for key, value in row.items() if "Dynamics" not in key} for row in watched]
        assert [row for row in rest if set(row) != {"step"}] == plain

    def test_a_resumed_run_continues_with_the_same_values(self, train):
        overrides = ["callbacks=dynamics", "callbacks.dynamics.every_n_steps=2", *TINY]
        whole = dynamics(train(*overrides, "trainer.max_steps=6", folder="whole"))
        first = train(*overrides, "trainer.max_steps=4", folder="first")
        rest = dynamics(train(*overrides, "trainer.max_steps=6", f"resume={first}", folder="rest"))
        assert dynamics(first) | rest == whole
        assert list(rest) == [6]

    def test_several_batches_of_a_step_are_logged_once(self, train):
        run = train(
            "grammar=L1", "callbacks=dynamics", "callbacks.dynamics.every_n_steps=1", "data.batch_size=8", *TINY,
            "+trainer.accumulate_grad_batches=2", "trainer.val_check_interval=2", "trainer.max_steps=3",
        )  # fmt: skip
        assert [row["step"] for row in read_metrics(run) if "Dynamics/longer" in row] == [0, 1, 2, 3]

    def test_a_model_with_nothing_to_train_is_logged_once(self, train):
        logged = dynamics(train("model=oracle", "callbacks=dynamics"))
        assert list(logged) == [0]
        assert logged[0]["Dynamics/rules_1_and_2"] == pytest.approx(4 / 6, abs=1e-6)  # n = 1..4 of 1..6

    def test_brackets_with_shorter_strings(self, train):
        run = train("grammar=L5", "callbacks=dynamics", "callbacks.dynamics.max_length=3", "trainer.max_steps=2", *TINY)
        assert sum(dynamics(run)[2][f"Dynamics/{name}"] for name in NAMES) == pytest.approx(1)


ERRORS = {
    "grammar=L5": "callbacks.dynamics.max_length=8: makes over 20,000 strings; use 6 or less",
    "callbacks.dynamics.max_length=14": "callbacks.dynamics.max_length=14: makes over 20,000 strings; use 13 or less",
    "callbacks.dynamics.max_length=0": "callbacks.dynamics.max_length=0: must be greater than 0",
    "callbacks.dynamics.every_n_steps=0": "callbacks.dynamics.every_n_steps=0: must be greater than 0",
    "callbacks.dynamics.every_n_step=5": "callbacks.dynamics.every_n_step=5: no such key; did you mean every_n_steps?",
    "callbacks.dynamics.every_n_steps=often": "callbacks.dynamics.every_n_steps=often: must be int",
    "model=linear callbacks.dynamics.max_length=13": (
        "callbacks.dynamics.max_length=13: the model reads 13 tokens; use 12"
    ),
    "model=linear model.published_mask=true": "needs a causal model",
}


@pytest.mark.parametrize(("overrides", "message"), ERRORS.items())
def test_errors_are_one_line_before_any_work(cli, tmp_path, overrides, message):
    status, out, err = cli(*SHORT, "callbacks=dynamics", *overrides.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_strings_of_six_out_of_four_letters_are_few_enough():
    grammar = get_grammar("L5", 12)
    assert Dynamics(grammar, MinLSTM(7), max_length=6).masks["neither"].shape == (5461,)
    with pytest.raises(ConfigError, match="use 6 or less"):
        Dynamics(grammar, MinLSTM(7), max_length=7)
