"""A language of four rules with names of its own, through a run, its commands and the report."""

import csv

import pytest
import torch
from conftest import SHORT, read_metrics, read_results

import rule_extrapolation
from rule_extrapolation.cli.complete import main as complete
from rule_extrapolation.cli.evaluate import main as evaluate
from rule_extrapolation.cli.report import main as report
from rule_extrapolation.grammars.anbn import AnBn
from rule_extrapolation.grammars.checking import check_language
from rule_extrapolation.grammars.exact.acceptor import begins_with, in_order, tally
from rule_extrapolation.grammars.letters import A, length
from rule_extrapolation.inference.decoding import Greedy
from rule_extrapolation.models.minlstm import MinLSTM
from rule_extrapolation.training.callbacks.dynamics import categories
from rule_extrapolation.training.ood import OODTraining


class FourRules(AnBn):
    """The words of aNbN, by four rules."""

    name = "four_rules"
    label = None
    rules = {
        "as_many": "#a = #b",
        "in_order": "a's before b's",
        "even_length": "an even number of symbols",
        "starts_well": "begins with a",
    }
    completion_rules = ("in_order",)
    repairable_rules = ("as_many", "even_length")
    acceptors = {
        "as_many": tally(a=1, b=-1),
        "in_order": in_order("ab"),
        "even_length": tally(modulo=2, a=1, b=1),
        "starts_well": begins_with("a"),
    }

    def as_many(self, symbols):
        return AnBn.rule_1(self, symbols)

    def in_order(self, symbols):
        return AnBn.rule_2(self, symbols)

    def even_length(self, symbols):
        return length(symbols) % 2 == 0

    def starts_well(self, symbols):
        return symbols[:, :1].eq(A).any(1)

    def is_prefix_of_word(self, symbols):
        return AnBn.rule_2(self, symbols) & (symbols.eq(A).sum(1) >= symbols.eq(A + 1).sum(1))


METRICS = [
    *("finished", "empty", "as_many", "in_order", "even_length", "starts_well", "grammatical"),
    *("in_order_completion", "as_many_repaired", "even_length_repaired"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    short = [override for override in SHORT if "data.max_length" not in override]
    overrides = [*short, "model=lstm", "model.hidden_dim=8", "decoding=sample", "callbacks=dynamics"]
    return rule_extrapolation.train(folder, *overrides, grammar=FourRules(max_length=12), quiet=True)


def test_it_is_sound():
    check_language(FourRules(max_length=12))


def test_every_rule_is_logged_and_has_levels_to_compare_with(trained):
    results = read_results(trained.folder)
    assert results["rules"] == FourRules.rules
    # All prompts have 8 symbols, so none breaks even_length: there is nothing to repair.
    metrics = [metric for metric in METRICS if metric != "even_length_repaired"]
    for kind in ("ID", "OOD"):
        names = {f"{kind}/{part}{metric}_accuracy" for part in ("", "finished/") for metric in metrics}
        for section in ("chance_levels", "stop_at_once"):
            assert {name for name in results[section] if name.startswith(kind)} == names
        assert {f"Test/{kind}/{metric}_accuracy" for metric in metrics} <= results["test"].keys()
    assert not any("rule_" in name for section in ("test", "chance_levels") for name in results[section])
    assert any("Val/OOD/starts_well_accuracy" in row for row in read_metrics(trained.folder))


def test_rows_of_completions_have_its_rules(trained):
    with open(trained.folder / "completions.csv", newline="") as file:
        columns = csv.DictReader(file).fieldnames
    assert columns == [
        *("prompt_set", "prompt", "completion", *METRICS[:8]),
        *("as_many_prompt", "even_length_prompt"),
    ]


def test_dynamics_are_about_the_first_two_rules(trained):
    assert [*categories(FourRules(max_length=12), 2)] == [
        "as_many_and_in_order",
        "as_many_only",
        "in_order_only",
        "neither",
    ]
    masses = next(row for row in read_metrics(trained.folder) if "Dynamics/neither" in row)
    assert sum(mass for name, mass in masses.items() if name.startswith("Dynamics/")) == pytest.approx(1, abs=1e-6)


def test_ood_training_takes_any_of_its_rules():
    grammar = FourRules(max_length=12)
    ood = OODTraining(grammar, MinLSTM(5), "broken", rule="even_length", batch_size=4)
    assert ood.caveat == "trained on the OOD prompts of 8 symbols, even length broken"
    assert not grammar.judge(ood.next_batch()[:, 1:])["even_length"].any()


def test_the_commands_print_its_titles(trained, call):
    folder = str(trained.folder)
    status, out, error = call(evaluate, f"run={folder}", "max_length_factor=1", "trust_run=true")
    assert status == 0, error
    for title in ("in order", "even length", "starts well", "as many"):
        assert title in out
    status, out, error = call(complete, f"run={folder}", "prompt=ab", "samples=1", "--trust-run")
    assert status == 0, error
    assert "starts well ✓ begins with a" in out
    assert "even length" in repr(trained.complete("ab"))


def test_the_report_takes_it(trained, call, tmp_path):
    status, _, error = call(report, f"runs={trained.folder}", f"out={tmp_path / 'report'}")
    assert status == 0, error
    table = (tmp_path / "report" / "tables" / "four_rules.md").read_text()
    assert "as many: #a = #b, in order: a's before b's" in table
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<strong>starts well</strong> begins with a" in page


def test_a_greedy_completion_is_judged_by_all_four():
    grammar = FourRules(max_length=12)
    tokens = Greedy(4)(MinLSTM(5), torch.tensor([[0, 3, 4]]))
    _, _, verdicts = grammar.judge_completion(tokens, 3)
    assert [*verdicts] == [*FourRules.rules]
