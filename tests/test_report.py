"""The report on short, real runs: averages compared with plain Python, errors, missing figures, figures, the page."""

import base64
import contextlib
import csv
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import yaml
from conftest import environment, read_results
from omegaconf import OmegaConf
from scipy.stats import ttest_rel

from rule_extrapolation.cli import report
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.reporting.comparison import Group, average, differences, group_runs
from rule_extrapolation.reporting.figures import KINDS, draw_all, save
from rule_extrapolation.reporting.intervals import binomial_interval
from rule_extrapolation.reporting.measures import AT_MINIMUM, MEASURES, OVER_TRAINING
from rule_extrapolation.reporting.overview import overview, rule_1
from rule_extrapolation.reporting.page import render
from rule_extrapolation.reporting.pairs import pair_table
from rule_extrapolation.reporting.published import published
from rule_extrapolation.reporting.runs import CURVE_POINTS, RunRecord, find_runs, read_run, read_run_folders, thinned
from rule_extrapolation.reporting.style import looks
from rule_extrapolation.reporting.table_files import as_csv, escaped
from rule_extrapolation.reporting.tables import csv_rows, language_table, language_tables, latex, markdown
from rule_extrapolation.reporting.wandb_runs import run_from_wandb
from rule_extrapolation.runs.identity import identity

VALIDATED = [
    "trainer.val_check_interval=2",
    "callbacks=dynamics",
    "callbacks.dynamics.every_n_steps=2",
    "callbacks.dynamics.max_length=4",
]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def edit(folder, results=None, config=None):
    """Change the files of a copied run folder."""
    if results:
        (folder / "results.json").write_text(json.dumps(read_results(folder) | results))
    if config:
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        for key, value in config.items():
            *path, last = key.split(".")
            node = settings
            for part in path:
                node = node[part]
            node[last] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def edit_test(folder, **figures):
    """Change test figures of a copied run folder, such as OOD/finished/rule_1_accuracy."""
    edit(folder, {"test": read_results(folder)["test"] | {f"Test/{name}": value for name, value in figures.items()}})


RULE_1 = "OOD/finished/rule_1_accuracy"


@pytest.fixture(scope="session")
def real(trained):
    """Run folders by name: two seeds of two architectures on L3, a language without OOD prompts and R2, L5."""
    runs = {f"{model}{seed}": [f"model={model}", f"seed={seed}"] for model in ("minlstm", "linear") for seed in (0, 1)}
    runs |= {"abN": ["grammar=abN"], "L5": ["grammar=L5", "model=mingru"]}
    return {name: trained(*overrides, *VALIDATED) for name, overrides in runs.items()}


@pytest.fixture
def folders(real, tmp_path):
    """Copies of the real run folders, which a test may change."""
    for name, folder in real.items():
        copy = tmp_path / "runs" / name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("checkpoints", ".hydra"))
    return tmp_path / "runs"


def make_report(out, *arguments):
    """Run the command in this process; returns what it printed."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setenv("COLUMNS", "120")
        patch.setattr(sys, "argv", ["report", f"out={out}", *map(str, arguments)])
        report.main()
    return printed.getvalue()


@pytest.fixture(scope="session")
def whole(real, tmp_path_factory):
    """A report of all real runs, and what was printed."""
    out = tmp_path_factory.mktemp("whole") / "report"
    return out, make_report(out, f"runs={','.join(map(str, real.values()))}")


def read_table(folder, name):
    with open(folder / "tables" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def tables_of(*folders, by=(), mix=False):
    """The languages' tables of run folders, without a report."""
    groups = group_runs(read_run_folders(find_runs(map(str, folders)), 10), by, mix)
    return {table.grammar: table for table in language_tables(groups, by)}


def rows_of(table):
    """The rows as they are in the table's CSV file."""
    return list(csv.DictReader(as_csv(csv_rows(table)).splitlines()))


def language_rows(name):
    """The rows of a language of which we have no run."""
    return rows_of(language_table([Group(name, "linear", "")], []))


def row_of(rows, architecture, source, protocol=None):
    [row] = [
        row
        for row in rows
        if (row["architecture"], row["source"]) == (architecture, source) and protocol in (None, row["protocol"])
    ]
    return row


class TestTables:
    def test_means_are_those_of_plain_python(self, real, whole):
        rows = read_table(whole[0], "aNbN")
        names = {"id_rule_1": "ID/finished/rule_1_accuracy", "id_rule_2": "ID/finished/rule_2_accuracy"}
        names |= {"test_loss": "loss", "ood_rule_1": RULE_1, "ood_finished": "OOD/finished_accuracy"}
        for model in ("minlstm", "linear"):
            results = [read_results(real[f"{model}{seed}"]) for seed in (0, 1)]
            for title, section, prefix in (
                (AT_MINIMUM.title, "test", "Test"),
                (OVER_TRAINING.title, "over_training", "Val"),
            ):
                row = row_of(rows, model, "ours", title)
                assert row["n"] == "2"
                for key, name in names.items():
                    values = [result[section].get(f"{prefix}/{name}") for result in results]
                    values = [value for value in values if value is not None]
                    assert row[f"{key}_n"] == str(len(values))
                    if not values:
                        assert row[f"{key}_mean"] == row[f"{key}_low"] == "none finished"
                        continue
                    assert float(row[f"{key}_mean"]) == pytest.approx(sum(values) / len(values))
                    std = pytest.approx(statistics.stdev(values)) if len(values) > 1 else "one run"
                    assert (float(row[f"{key}_std"]) if len(values) > 1 else row[f"{key}_std"]) == std

    def test_figures_over_all_completions_are_in_runs_csv(self, real, whole):
        for row in read_table(whole[0], "runs"):
            results = next(read_results(folder) for folder in real.values() if row["run"].endswith(folder.name))
            expected = results["test"].get("Test/OOD/rule_1_accuracy")
            shown = row[f"{AT_MINIMUM.key}/over_all/ood_rule_1"]
            assert shown == "none" if expected is None else float(shown) == pytest.approx(expected)

    def test_references_are_those_of_the_runs(self, folders):
        stop = {"OOD/rule_1_accuracy": 0.2, RULE_1: 0.275, "OOD/finished/empty_accuracy": 1.0}
        edit(folders / "minlstm0", {"stop_at_once": stop})
        table, results = tables_of(folders / "minlstm0")["aNbN"], read_results(folders / "minlstm0")
        rows = rows_of(table)
        [optimal] = [row for row in rows if row["source"] == "optimal"]
        assert float(optimal["test_loss_mean"]) == results["optimal_loss"]
        [chance] = [row for row in rows if row["source"] == "chance"]
        assert float(chance["ood_rule_1_mean"]) == pytest.approx(results["chance_levels"][RULE_1])
        [stop] = [row for row in rows if row["source"] == "stop at once"]
        assert (stop["ood_rule_1_mean"], stop["ood_empty_mean"]) == ("0.275", "1.0")
        assert (stop["test_loss_mean"], stop["id_rule_1_mean"]) == ("not defined", "not logged")
        for text in (markdown(table), latex(table)):
            assert "stop at once: the completion that is EOS alone." in text

    def test_both_protocols_and_the_published_figures_are_over_finished_completions(self, folders):
        edit_test(folders / "minlstm0", **{"OOD/rule_1_accuracy": 0.25, RULE_1: 0.5, "OOD/finished_accuracy": 0.5})
        table = tables_of(folders / "minlstm0")["aNbN"]
        row = row_of(rows_of(table), "minlstm", "ours", AT_MINIMUM.title)
        assert (row["ood_rule_1_mean"], row["ood_finished_mean"]) == ("0.5", "0.5")
        assert (
            markdown(table).count("Published means count a run in which nothing finished as 0; ours leave it out.") == 1
        )
        assert "over all completions" not in markdown(table)

    def test_runs_without_the_newer_figures_say_so(self, folders):
        results = read_results(folders / "minlstm0")
        results["test"] = {
            name: value for name, value in results["test"].items() if "empty" not in name and "repaired" not in name
        }
        results = {key: value for key, value in results.items() if key not in ("stop_at_once", "prompts")}
        (folders / "minlstm0" / "results.json").write_text(json.dumps(results))
        rows = rows_of(tables_of(folders / "minlstm0")["aNbN"])
        row = row_of(rows, "minlstm", "ours", AT_MINIMUM.title)
        assert row["ood_empty_mean"] == row["ood_rule_1_repaired_mean"] == "not logged"
        assert row["ood_finished_low"] == "not known"
        assert row_of(rows, "stop at once", "stop at once")["ood_rule_1_mean"] == "not logged"

    def test_another_budget_has_another_chance(self, whole):
        """The linear model's completions end at its window."""
        chance = [row["architecture"] for row in read_table(whole[0], "aNbN") if row["source"] == "chance"]
        assert {"chance (minlstm)", "chance (linear)"} <= set(chance)

    def test_published_figures_are_included_with_both_labels(self, whole):
        out, _ = whole
        rows = read_table(out, "parentheses_and_brackets")
        row = row_of(rows, "lstm", "published", "best over training")
        theirs = published().loc["parentheses_and_brackets", "lstm"]
        assert (row["label"], row["paper_label"], int(row["n"])) == ("L5", "L4", theirs["n_runs"])
        assert float(row["ood_rule_1_mean"]) == theirs["ood_rule_1_mean"]
        assert row_of(rows, "lstm", "ours")["ood_rule_1_mean"] == "not run"
        assert row_of(rows, "mingru", "published")["test_loss_mean"] == "not published"
        text = (out / "tables" / "parentheses_and_brackets.md").read_text()
        assert "parentheses_and_brackets (L5; L4 in the paper)" in text
        assert "arXiv 2409.13728" in text and "12 symbols in these runs, up to 256 in the published" in text

    def test_no_cell_is_blank(self, real, whole):
        out, printed = whole
        for path in (out / "tables").glob("*.csv"):
            for row in read_table(out, path.stem):
                assert all(value.strip() for value in row.values()), (path.name, row)
        for path in (out / "tables").glob("*.md"):
            assert "|  |" not in path.read_text() and "nan" not in path.read_text()
        row = row_of(rows_of(tables_of(real["minlstm0"])["aNbN"]), "minlstm", "ours", AT_MINIMUM.title)
        assert (row["n"], row["test_loss_std"]) == ("1", "one run")
        abn = row_of(read_table(out, "abN"), "minlstm", "ours", AT_MINIMUM.title)
        assert (abn["id_rule_2_mean"], abn["ood_rule_1_mean"]) == ("no R2", "no OOD prompts")
        assert (abn["label"], abn["paper_label"]) == ("none", "not in the paper")
        assert "no R2" in printed

    def test_latex_is_balanced_and_escaped(self, real):
        for table in tables_of(*real.values()).values():
            text = latex(table)
            body = text.split("\\toprule\n")[1].split("\\bottomrule")[0]
            lines = [line for line in body.splitlines() if line != "\\midrule"]
            assert all(line.endswith("\\\\") and line.count(" & ") == 10 for line in lines)
            assert text.count("{") == text.count("}")
            assert not re.search(r"(?<!\\)[_%#]", text.split("\\label")[0].split("\n", 1)[1])
        assert escaped("a_b & 50% ± ^") == r"a\_b \& 50\% $\pm$ \textasciicircum{}"

    def test_published_mask_is_marked(self, trained):
        rows = rows_of(tables_of(trained("model=linear", "model.published_mask=true"))["aNbN"])
        assert row_of(rows, "linear (published mask: sees the future)", "ours", AT_MINIMUM.title)["n"] == "1"

    def test_the_oracle_has_not_been_validated(self, trained):
        [group] = group_runs([read_run(trained("model=oracle"), 10)])
        assert average(group.runs, OVER_TRAINING, MEASURES[0]).missing == "no validation"
        assert average(group.runs, AT_MINIMUM, MEASURES[1]).n == 1

    def test_a_baseline_comes_after_the_architectures(self, real, trained):
        table = tables_of(trained("model=ngram", "trainer.val_check_interval=1"), real["minlstm0"])["aNbN"]
        assert not any("trainer." in note for note in table.notes)  # it is not trained
        rows = rows_of(table)
        names = [row["architecture"] for row in rows]
        assert names[-6:] == ["ngram (baseline)", "ngram (baseline)", "people", "stop at once", "chance", "optimal"]
        assert "minlstm" in names[:-6] and not any("ngram" in name for name in names[:-6])
        row = row_of(rows, "ngram (baseline)", "ours", AT_MINIMUM.title)
        assert float(row["test_loss_mean"]) == read_results(trained("model=ngram"))["test"]["Test/loss"]


class TestIntervals:
    def test_of_several_seeds_is_a_t_interval_clipped_to_0_and_1(self, folders):
        for name, value in {"minlstm0": 0.5, "minlstm1": 0.52}.items():
            edit_test(folders / name, **{RULE_1: value, "loss": value})
        table = tables_of(folders / "minlstm0", folders / "minlstm1")["aNbN"]
        row = row_of(rows_of(table), "minlstm", "ours", AT_MINIMUM.title)
        half = 12.7062 * 0.01  # t with one degree of freedom, times std / sqrt(2)
        assert float(row["ood_rule_1_low"]) == pytest.approx(0.51 - half, abs=1e-5)
        assert float(row["test_loss_high"]) == pytest.approx(0.51 + half, abs=1e-5)
        assert "| 0.510 [0.38, 0.64] |" in markdown(table)
        assert "| 0.5100 [0.3829, 0.6371] |" in markdown(table)
        edit_test(folders / "minlstm1", **{RULE_1: 1.0})
        row = row_of(
            rows_of(tables_of(folders / "minlstm0", folders / "minlstm1")["aNbN"]), "minlstm", "ours", AT_MINIMUM.title
        )
        assert (row["ood_rule_1_low"], row["ood_rule_1_high"]) == ("0.0", "1.0")

    def test_of_seeds_that_agree_is_that_of_one_of_them(self, folders):
        """0.275 is 69 of 251; the interval of the losses, which are equal too, is not known."""
        pair = folders / "minlstm0", folders / "minlstm1"
        for folder in pair:
            edit_test(folder, **{RULE_1: 69 / 251, "OOD/finished_accuracy": 1.0, "loss": 0.5})
            edit(folder, {"prompts": {"ID": 5, "OOD": 251}})
        row = row_of(rows_of(tables_of(*pair)["aNbN"]), "minlstm", "ours", AT_MINIMUM.title)
        expected = binomial_interval(69 / 251, 251)
        assert (float(row["ood_rule_1_low"]), float(row["ood_rule_1_high"])) == pytest.approx(expected)
        assert (row["ood_rule_1_n"], row["test_loss_low"]) == ("2", "not known")
        assert "0.275 [0.22, 0.34]" in markdown(tables_of(*pair)["aNbN"])

    @pytest.mark.parametrize("values", [[0.2751, 0.2749], [0.2949, 0.29491], [0.001, 0.0011], [0.9991, 0.9992]])
    def test_holds_the_mean_as_printed(self, folders, values):
        pair = folders / "minlstm0", folders / "minlstm1"
        for folder, value in zip(pair, values):
            edit_test(folder, **{RULE_1: value})
        table = tables_of(*pair)["aNbN"]
        [row] = [row for row in table.rows if row.source == "ours" and row.protocol == AT_MINIMUM.title]
        for text in (row.strings()[6], rule_1(row)):
            mean, low, high = map(float, re.findall(r"[\d.]+", text))
            assert low <= mean <= high

    def test_of_one_run_is_binomial_over_its_different_prompts(self, folders):
        edit_test(
            folders / "minlstm0",
            **{RULE_1: 1.0, "OOD/finished_accuracy": 0.5, "OOD/finished/rule_1_repaired_accuracy": 0.0},
        )
        edit(folders / "minlstm0", {"prompts": {"ID": 5, "OOD": 20}, "stop_at_once": {"OOD/rule_1_accuracy": 0.2}})
        row = row_of(rows_of(tables_of(folders / "minlstm0")["aNbN"]), "minlstm", "ours", AT_MINIMUM.title)
        # All of n: the lower end is (0.025) ** (1 / n), and none of n: the upper end is 1 minus that.
        assert float(row["ood_rule_1_low"]) == pytest.approx(0.025 ** (1 / 10))
        assert row["ood_rule_1_high"] == "1.0"
        assert float(row["ood_rule_1_repaired_high"]) == pytest.approx(1 - 0.025 ** (1 / 8))
        assert row["test_loss_low"] == "not known"
        assert float(row["ood_finished_low"]) == pytest.approx(binomial_interval(0.5, 20)[0])

    def test_published_figures_over_nothing_are_none(self, whole):
        """In no run of linear on aNbNcN did a completion finish; in the files, its accuracies are 0."""
        row = row_of(language_rows("aNbNcN"), "linear", "published")
        assert float(published().loc["aNbNcN", "linear"]["ood_rule_1_mean"]) == 0
        assert (row["ood_rule_1_mean"], row["id_rule_1_mean"], row["ood_finished_mean"]) == (
            "none finished",
            "none finished",
            "0.0",
        )
        assert row_of(language_rows("parentheses_and_brackets"), "linear", "published")["ood_rule_1_mean"] == "0.0"

    def test_published_figures_keep_their_standard_deviation(self, whole):
        row = row_of(read_table(whole[0], "aNbN"), "lstm", "published")
        assert (row["ood_rule_1_low"], row["ood_empty_mean"]) == ("not published", "not published")
        assert "0.376 ± 0.209" in (whole[0] / "tables" / "aNbN.md").read_text()


class TestPairs:
    def test_p_is_holm_corrected_scipys(self):
        ours, theirs, third = [0.5, 0.6, 0.8, 0.7], [0.3, 0.5, 0.5, 0.55], [0.31, 0.49, 0.52, 0.5]
        table = pairs_of(a=ours, b=theirs, c=third)
        ps = {(pair.first, pair.second): pair.p for pair in table.pairs}
        plain = {
            pair: ttest_rel(*values).pvalue
            for pair, values in {
                ("a", "b"): (ours, theirs),
                ("a", "c"): (ours, third),
                ("b", "c"): (theirs, third),
            }.items()
        }
        ordered = sorted(plain, key=plain.get)
        expected, last = {}, 0
        for rank, pair in enumerate(ordered):
            last = expected[pair] = max(last, min(1, plain[pair] * (3 - rank)))
        assert ps == pytest.approx(expected)
        assert table.pairs[0].difference == pytest.approx(sum(ours) / 4 - sum(theirs) / 4)
        assert "3 of 3" in table.remark

    def test_only_seeds_that_both_have_are_compared(self):
        table = pairs_of(a=[0.5, 0.6, None, 0.7], b=[0.3, None, 0.5, 0.4])
        [pair] = table.pairs
        assert (pair.seeds, pair.p, pair.untested) == (2, None, "too few seeds")
        assert pair.difference == pytest.approx(0.25)
        [pair] = pairs_of(a=[0.5, None], b=[None, 0.5]).pairs
        assert (pair.seeds, pair.difference, pair.untested) == (0, None, "too few seeds")

    def test_differences_without_spread_are_not_tested(self):
        table = pairs_of(a=[1.0, 1.0, 1.0], b=[1.0, 1.0, 1.0], c=[0.7, 0.7, 0.7], d=[0.1, 0.5, 0.4])
        found = {(pair.first, pair.second): (pair.untested, pair.p) for pair in table.pairs}
        assert found["a", "b"] == ("equal in every seed", None)
        assert found["a", "c"] == ("no spread", None)
        assert found["a", "d"][1] == pytest.approx(min(1, 3 * ttest_rel([1.0] * 3, [0.1, 0.5, 0.4]).pvalue))
        assert "4 of 6" not in table.remark and "3 of 6" in table.remark
        for cells in (pair.strings() for pair in table.pairs):
            assert not any("nan" in cell for cell in cells)

    def test_they_are_in_every_file(self, folders, tmp_path):
        for name, value in {"minlstm0": 0.2, "minlstm1": 0.4, "linear0": 0.5, "linear1": 0.9}.items():
            edit_test(folders / name, **{RULE_1: value})
        out = tmp_path / "report"
        make_report(out, f"runs={folders}")
        [row] = read_table(out, "comparisons")
        assert (row["grammar"], row["architecture"], row["compared_with"]) == ("aNbN", "linear", "minlstm")
        assert (row["seeds"], row["p"], row["low"]) == ("2", "too few seeds", "too few seeds")
        assert float(row["difference"]) == pytest.approx(0.4)
        for text in (out / "tables" / "aNbN.md", out / "tables" / "aNbN.tex", out / "report.html"):
            assert "+0.400" in text.read_text() and "too few seeds" in text.read_text()


class TestSizes:
    def test_models_that_differ_in_size_are_named(self, folders, tmp_path):
        numbers = {"minlstm0": 1000, "minlstm1": 1000, "linear0": 1500, "linear1": 1500}
        for name, number in numbers.items():
            edit(folders / name, {"num_parameters": number})
        assert tables_of(folders)["aNbN"].sizes is None
        edit(folders / "linear0", {"num_parameters": 1501})
        printed = make_report(tmp_path / "report", f"runs={folders}")
        line = "Models differ in size: minlstm has 1,000 weights, linear 1,501."
        assert line in printed
        for name in ("tables/aNbN.md", "report.html"):
            assert (tmp_path / "report" / name).read_text().count(line) == 1


class TestOverview:
    def test_has_a_column_for_each_language(self, folders, tmp_path):
        for name, value in {"minlstm0": 0.4, "minlstm1": 0.42}.items():
            edit_test(
                folders / name, **{RULE_1: value, "OOD/finished_accuracy": 0.5, "OOD/finished/empty_accuracy": 0.25}
            )
            edit(folders / name, {"stop_at_once": {RULE_1: 0.275}})
        make_report(tmp_path / "report", f"runs={folders / 'minlstm0'},{folders / 'minlstm1'},{folders / 'L5'}")
        lines = (tmp_path / "report" / "tables" / "overview.md").read_text().splitlines()
        assert "| | L3 aNbN | L5 parentheses and brackets |" in lines
        rows = [line for line in lines if line.startswith("| minlstm |")]
        assert rows == ["| minlstm | 0.41 [0.28, 0.54] | not run |", "| minlstm | 0.50 / 0.25 | not run |"]
        [stop] = [line for line in lines if line.startswith("| stop at once |")]
        assert stop.startswith("| stop at once | 0.28 |") or stop.startswith("| stop at once | 0.27 |")

    def test_a_language_without_a_finished_run_has_its_references(self, trained, folders):
        """They are those that a finished run has; a name without remarks joins the row that has them."""
        published = trained("model=linear", "model.published_mask=true")
        of_finished = tables_of(folders / "L5")["parentheses_and_brackets"]
        (folders / "L5" / "results.json").unlink()
        edit(folders / "L5", config={"model.name": "linear"})
        tables = tables_of(published, folders / "L5")
        table = tables["parentheses_and_brackets"]
        expected = {row.source: row.strings()[3:] for row in of_finished.rows if row.n is None}
        assert {row.source: row.strings()[3:] for row in table.rows if row.n is None} == expected
        assert table.rules == of_finished.rules
        lines = overview(list(tables.values())).splitlines()
        first, second = [line for line in lines if line.startswith("| linear (published mask: sees the future) |")]
        assert first.endswith("| no finished run |") and second.endswith("| no finished run |")
        stop = of_finished.rows[-3].strings()[6]
        assert any(re.fullmatch(rf"\| stop at once \| [\d.]+ \| {float(stop):.2f} \|", line) for line in lines)


def pairs_of(**values):
    """The pairs of rows with these OOD R1 by seed, None where a run has none."""
    groups = []
    for name, of_seeds in values.items():
        runs = [
            RunRecord("", {}, {"seed": seed, "test": {} if value is None else {f"Test/{RULE_1}": value}})
            for seed, value in enumerate(of_seeds)
        ]
        groups.append(Group("aNbN", name, "", runs))
    return pair_table(groups, "aNbN")


class TestGroups:
    def test_unfinished_failed_and_diverged_runs_are_named_and_not_averaged(self, folders, tmp_path):
        edit(folders / "minlstm1", {"status": "diverged", "seed": 1})
        edit(folders / "linear0", {"status": "failed", "error": "RuntimeError: out of luck"})
        (folders / "linear1" / "results.json").unlink()
        (folders / "abN" / "results.json").write_text("{")
        (folders / "abN" / "config.yaml").unlink()
        out = tmp_path / "report"
        printed = make_report(out, f"runs={folders}")
        rows = read_table(out, "aNbN")
        assert row_of(rows, "minlstm", "ours", AT_MINIMUM.title)["n"] == "1"
        assert row_of(rows, "linear", "ours", AT_MINIMUM.title)["test_loss_mean"] == "no finished run"
        printed = printed.replace("\n", " ")
        for words in ("diverged: its loss is not finite", "failed: RuntimeError: out of luck", "without results.json"):
            assert words in printed
        assert "unreadable" in printed
        assert "linear: 2 of 2 runs not averaged" in (out / "tables" / "aNbN.md").read_text()
        assert not (out / "tables" / "unknown.csv").exists() and not (out / "tables" / "abN.csv").exists()
        runs = read_table(out, "runs")
        assert [row["status"] for row in runs if row["run"].endswith("linear0")] == ["failed"]
        page = (out / "report.html").read_text()
        assert "out of luck" in page

    def test_differing_configurations_are_refused_by_name(self, folders, call, tmp_path):
        edit(folders / "minlstm1", config={"optimizer.lr": 0.5, "model.hidden_dim": 32})
        status, out, err = call(report.main, f"runs={folders}", f"out={tmp_path / 'report'}")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "minlstm on aNbN" in err
        assert "optimizer.lr is 0.002 (1 run) or 0.5 (1 run)" in err and "model.hidden_dim is 64" in err
        assert "by=" in err and "mix=true" in err
        assert not (tmp_path / "report").exists()

    def test_by_makes_rows_and_mix_says_so(self, folders):
        edit(folders / "minlstm1", config={"optimizer.lr": 0.5})
        rows = rows_of(tables_of(folders, by=["optimizer.lr"])["aNbN"])
        for value in ("0.002", "0.5"):
            assert row_of(rows, f"minlstm, optimizer.lr={value}", "ours", AT_MINIMUM.title)["n"] == "1"
        table = tables_of(folders, mix=True)["aNbN"]
        assert row_of(rows_of(table), "minlstm", "ours", AT_MINIMUM.title)["n"] == "2"
        assert "averages over 2 configurations" in markdown(table)

    def test_runs_with_and_without_the_published_quirks_are_told_apart_by_their_name(self, trained, real):
        runs = [real["linear0"], trained("model=linear", "seed=0", "quirks=published", VALIDATED[0])]
        with pytest.raises(ConfigError, match="by=quirks makes rows of them"):
            tables_of(*runs)
        table = tables_of(*runs, by=["quirks"])["aNbN"]
        ours = {row["architecture"] for row in rows_of(table) if row["source"] == "ours"}
        assert {"linear, quirks=none", "linear, quirks=published"} < ours
        assert "linear, quirks=published: published mask: sees the future; published decoding." in table.notes

    def test_a_run_that_does_not_record_its_quirks_is_averaged_with_those_that_do(self, folders):
        path = folders / "minlstm1" / "config.yaml"
        before = OmegaConf.load(path)
        path.write_text(path.read_text().replace("quirks: none\n", ""))
        without = OmegaConf.load(path)
        assert "quirks" in before and "quirks" not in without
        assert identity(before) == identity(without)
        assert row_of(rows_of(tables_of(folders)["aNbN"]), "minlstm", "ours", AT_MINIMUM.title)["n"] == "2"

    def test_folders_and_seeds_are_not_part_of_the_configuration(self, folders):
        runs = read_run_folders([folders / "minlstm0", folders / "minlstm1"], 10)
        assert runs[0].config["run_dir"] != runs[1].config["run_dir"]
        assert runs[0].config["data"]["shuffle_seed"] != runs[1].config["data"]["shuffle_seed"]
        assert not differences(runs)

    def test_settings_that_differ_between_rows_are_noted(self, folders):
        for seed in (0, 1):
            edit(folders / f"linear{seed}", config={"optimizer.lr": 0.5})
        assert "Rows differ in optimizer.lr: 0.5 for linear; 0.002 for minlstm." in tables_of(folders)["aNbN"].notes

    def test_the_latest_of_several_runs_with_one_configuration_and_seed_is_averaged(self, folders):
        again = folders / "again"
        shutil.copytree(folders / "minlstm0", again)
        runs = read_run_folders([again, folders / "minlstm0", folders / "minlstm1"], 10)
        runs[0].time = runs[1].time + 60
        [group] = group_runs(runs)
        assert [run.source for run in group.runs] != [] and runs[0] in group.runs and runs[1] not in group.runs
        assert "has the same configuration and seed" in runs[1].problem


class TestFigures:
    def test_each_is_written_in_three_formats_or_named(self, whole):
        out, printed = whole
        names = {path.name for path in (out / "figures").iterdir()}
        drawn = ("summary", "summary_published", "loss_and_rules", "learning_curves", "dynamics")
        assert names == {f"{name}.{format}" for name in drawn for format in ("pdf", "svg", "png")}
        assert f"no figure of {KINDS['lengths'].title}: no finished run has an evaluation by length" in printed

    def test_lengths_come_from_the_latest_evaluation(self, folders):
        for name, loss in {"2026-01-01": 9.0, "2026-01-02": 0.5}.items():
            (folders / "minlstm0" / "evaluations" / name).mkdir(parents=True)
            (folders / "minlstm0" / "evaluations" / name / "lengths.csv").write_text(
                f"length,loss,oracle_loss,rule_1_accuracy,grammatical_accuracy\n8,{loss},,1.0,1.0\n16,{loss},,0.5,0.5\n"
            )
        runs = read_run_folders(find_runs([str(folders)]), 10)
        figures, left_out = draw_all(group_runs(runs))
        assert set(left_out) == {"prompt_lengths"}
        lines = [line for line in figures["lengths"].axes[0].lines if len(line.get_xdata()) > 1]
        assert [list(line.get_ydata()) for line in lines if list(line.get_xdata()) == [8, 16]] == [[0.5, 0.5]]

    def test_curves_are_the_logged_ones(self, folders):
        run = read_run(folders / "minlstm0", 10)
        with open(folders / "minlstm0" / "metrics.csv") as file:
            logged = [(int(row["step"]) + 1, float(row["Val/loss"])) for row in csv.DictReader(file) if row["Val/loss"]]
        assert list(zip(*run.curves["Val/loss"])) == logged
        assert run.curves["Dynamics/longer"][0] == [0, 2, 4]
        assert len(thinned([*range(9999)])) <= CURVE_POINTS + 1 and thinned([*range(9999)])[-1] == 9998

    def test_losses_of_another_objective_do_not_squeeze_the_others(self, folders):
        optimum = read_results(folders / "linear0")[
            "optimal_loss_on_test_words"
        ]  # of all words, so the same in all runs
        for name, loss in {"linear0": 40.0, "linear1": 50.0, "minlstm0": 1.0, "minlstm1": 1.5}.items():
            edit_test(folders / name, **{"loss": optimum + loss, RULE_1: 0.5})
        runs = read_run_folders(find_runs([str(folders)]), 10)
        axes = next(ax for ax in draw_all(group_runs(runs))[0]["loss_and_rules"].axes if "aNbN" in ax.get_title("left"))
        assert 1.5 < axes.get_xlim()[1] < 40
        assert "linear 40 to 50" in axes.get_xlabel()
        drawn = [x for line in axes.lines for x in line.get_xdata()]
        assert drawn.count(axes.get_xlim()[1]) == 2  # both, at the edge
        alone = draw_all(group_runs([run for run in runs if run.model == "linear"]))[0]["loss_and_rules"]
        assert alone.axes[0].get_xlabel() == "test loss \N{MINUS SIGN} optimum" and alone.axes[0].get_xlim()[1] >= 50

    def test_losses_are_shown_minus_the_optimum_of_the_words(self, folders):
        """A run may come to the optimum, and by rounding below it; both are on the axis."""
        for name, (loss, optimum) in {"minlstm0": (0.3 - 1e-9, 0.3), "minlstm1": (0.45, 0.4)}.items():
            edit_test(folders / name, **{"loss": loss, RULE_1: 0.5})
            edit(folders / name, {"optimal_loss_on_test_words": optimum, "optimal_loss": 0.35})

        def panel():
            groups = group_runs(read_run_folders([folders / "minlstm0", folders / "minlstm1"], 10))
            axes = draw_all(groups)[0]["loss_and_rules"].axes[0]
            [points] = [line for line in axes.lines if line.get_marker() == "P"]
            assert all(axes.get_xlim()[0] < x < axes.get_xlim()[1] for x in points.get_xdata())
            return axes.get_xlabel(), list(points.get_xdata())

        title, drawn = panel()
        assert title == "test loss \N{MINUS SIGN} optimum" and drawn == pytest.approx([-1e-9, 0.05])
        edit(folders / "minlstm1", {"optimal_loss_on_test_words": None})
        title, drawn = panel()
        assert title == "test loss \N{MINUS SIGN} optimum (language)" and drawn == pytest.approx([-0.05, 0.1])
        edit(folders / "minlstm1", {"optimal_loss": None})
        title, drawn = panel()
        assert title == "test loss" and drawn == pytest.approx([0.3, 0.45])

    def test_validation_losses_are_shown_minus_each_runs_optimum(self, folders):
        for name, optimum in {"minlstm0": 0.1, "minlstm1": 0.2}.items():
            edit(folders / name, {"optimal_loss_on_validation_words": optimum})
        runs = read_run_folders([folders / "minlstm0", folders / "minlstm1"], 10)
        axes = draw_all(group_runs(runs))[0]["learning_curves"].axes[0]
        expected = [
            [loss - run.results["optimal_loss_on_validation_words"] for loss in run.curves["Val/loss"][1]]
            for run in runs
        ]
        drawn = [list(line.get_ydata()) for line in axes.lines]
        assert all(curve in drawn for curve in expected)
        assert axes.get_ylabel() == "Val/loss \N{MINUS SIGN} optimum"

    def test_runs_without_a_finished_completion_are_named(self, folders):
        results = read_results(folders / "minlstm0")
        results["test"] = {key: value for key, value in results["test"].items() if "OOD/finished/" not in key}
        (folders / "minlstm0" / "results.json").write_text(json.dumps(results))
        edit_test(folders / "minlstm1", **{RULE_1: 0.5})
        groups = group_runs(read_run_folders([folders / "minlstm0", folders / "minlstm1"], 10))
        assert "not shown, none finished: 1 minlstm" in draw_all(groups)[0]["loss_and_rules"].axes[0].get_xlabel()

    def test_stop_at_once_is_drawn_where_chance_is(self, folders):
        for name in ("minlstm0", "minlstm1"):
            edit_test(folders / name, **{RULE_1: 0.5})
            edit(folders / name, {"stop_at_once": {RULE_1: 0.275}})
        groups = group_runs(read_run_folders([folders / "minlstm0", folders / "minlstm1"], 10))
        figures = draw_all(groups)[0]
        panels = {"summary": 0, "summary_published": 0, "loss_and_rules": 0, "learning_curves": 1}
        for name, place in panels.items():
            lines = [line for line in figures[name].axes[place].lines if list(line.get_ydata()) == [0.275, 0.275]]
            assert len(lines) == 1, name
            assert "stop at once" in [text.get_text() for text in figures[name].legends[0].texts]

    def test_error_bars_stay_between_0_and_1(self, folders):
        for name, accuracy in {"minlstm0": 0.0, "minlstm1": 1.0}.items():
            edit_test(folders / name, **{RULE_1: accuracy})
        groups = group_runs(read_run_folders(find_runs([str(folders / "minlstm0"), str(folders / "minlstm1")]), 10))
        [bar] = draw_all(groups)[0]["summary"].axes[0].containers
        [segment] = bar.lines[2][0].get_segments()
        assert [y for _, y in segment] == [0, 1]  # the t interval is wider

    def test_each_row_has_its_own_chance(self, folders):
        """The linear model's completions end at its window, so that fewer of them finish by chance."""
        groups = [
            group for group in group_runs(read_run_folders(find_runs([str(folders)]), 10)) if group.grammar == "aNbN"
        ]
        for group, level in zip(groups, (0.2, 0.8)):
            for run in group.runs:
                run.results["chance_levels"][RULE_1] = level
        axes = draw_all(groups)[0]["summary"].axes[0]
        bands = [band.get_paths()[0].get_extents() for band in axes.collections if band.get_alpha() == 0.6]
        drawn = [(round((band.y0 + band.y1) / 2, 6), band.x0, band.x1) for band in bands]
        assert [level for level, _, _ in drawn] == [0.2, 0.8]
        assert drawn[0][2] == pytest.approx(drawn[1][1])  # side by side

    def test_looks_are_distinct_and_stable_for_unknown_names(self, folders):
        for name in ("linear0", "linear1"):
            edit(folders / name, {"model": "my_own"})
        groups = group_runs(read_run_folders(find_runs([str(folders)]), 10))
        found = looks(groups)
        assert set(found) == {"minlstm", "my_own", "mingru"}
        assert len({look.color for look in found.values()}) == len({look.marker for look in found.values()}) == 3
        assert found == looks(groups[::-1])

    def test_the_same_runs_make_the_same_files(self, real, whole, tmp_path):
        figures, _ = draw_all(group_runs(read_run_folders(list(real.values()), 10)))
        save(figures["summary"], tmp_path, "summary")
        for path in tmp_path.glob("summary.*"):
            assert path.read_bytes() == (whole[0] / "figures" / path.name).read_bytes()


class TestCompletions:
    def test_packed_ones_are_those_of_the_file(self, folders):
        packed = json.loads(zlib.decompress(base64.b64decode(read_run(folders / "minlstm0", 10**6).completions)))
        with open(folders / "minlstm0" / "completions.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(packed["sets"]) == ["ID", "OOD", "SOS"]
        for name, part in packed["sets"].items():
            written = [row for row in rows if row["prompt_set"] == name]
            assert part["of"] == len(written) == sum(times for *_, times in part["rows"])
            kept = {(p, c): verdicts for p, c, verdicts, _ in part["rows"]}
            for row in written:
                verdicts = "".join("1" if row[verdict] == "True" else "0" for verdict in packed["verdicts"])
                assert kept[row["prompt"], row["completion"]] == verdicts

    def test_the_cap_keeps_rows_at_equal_distances(self, folders):
        packed = json.loads(zlib.decompress(base64.b64decode(read_run(folders / "minlstm0", 5).completions)))
        part = packed["sets"]["OOD"]
        assert len(part["rows"]) == 5 < part["different"] <= part["of"]


DRIVE = """
<script>
addEventListener("error", (event) => document.body.dataset.error = event.message);
setTimeout(() => {
  const table = document.querySelector("#aNbN table");
  const click = () => table.querySelectorAll("thead button")[3].click();
  const losses = () => [...table.tBodies[0].rows].map((row) => row.cells[3].dataset.value).join(" ");
  click(); document.body.dataset.ascending = losses();
  click(); document.body.dataset.descending = losses();
  const form = document.getElementById("browse").elements;
  const change = (name, value) => { form[name].value = value; form[name].dispatchEvent(new Event("change")); };
  change("verdict", "rule_1"); change("kept", "0");
  document.body.dataset.broken = document.querySelectorAll("#rows tbody tr").length;
  change("kept", "1");
  document.body.dataset.kept = document.querySelectorAll("#rows tbody tr").length;
  change("kept", "");
  document.body.dataset.all = document.querySelectorAll("#rows tbody tr").length;
}, 1500);
</script>
"""


class TestPage:
    def test_it_loads_nothing_from_elsewhere(self, whole):
        page = (whole[0] / "report.html").read_text()
        assert not re.findall(r'(?:src|href)="(?!#|data:|figures/)[^"]*"', page.replace('href="data:,"', ""))
        assert page.count("<svg") == 5
        ids = re.findall(r'\bid="([^"]+)"', page)
        assert len(set(ids) - {"data"}) > 10
        assert "@import" not in page and "fetch(" not in page

    def test_the_content_of_runs_is_escaped(self, real):
        run = read_run(real["minlstm0"], 10)
        run.problem = run.results["grammar"] = "</script><script>alert(1)</script>"
        page = render("A<b>", [run], [], [], {}, {}, 10)
        assert "<script>alert" not in page and "A&lt;b&gt;" in page

    @pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
    def test_in_a_browser_tables_sort_and_completions_open(self, real, whole, tmp_path):
        page = tmp_path / "driven.html"
        page.write_text((whole[0] / "report.html").read_text().replace("</body>", DRIVE + "</body>"))
        number = list(real).index("minlstm0")
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [
            CHROMIUM,
            *flags,
            "--virtual-time-budget=8000",
            "--dump-dom",
            f"{page.as_uri()}#run={number}&set=OOD",
        ]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        found = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<body[^>]*>", dom)[0]))
        assert "error" not in found, found
        numbers = [[float(text) for text in found[order].split()] for order in ("ascending", "descending")]
        assert numbers[0] == sorted(numbers[0]) == numbers[1][::-1]
        assert found["ascending"].strip() != ""
        packed = json.loads(zlib.decompress(base64.b64decode(read_run(real["minlstm0"], 64).completions)))
        place = packed["verdicts"].index("rule_1")
        kept = [row[2][place] for row in packed["sets"]["OOD"]["rows"]]
        assert (int(found["all"]), int(found["kept"])) == (len(kept), kept.count("1"))
        assert int(found["broken"]) == kept.count("0") > 0


class TestWandb:
    def test_a_run_logged_offline_reads_as_its_folder(self, train, monkeypatch, tmp_path):
        import wandb
        from offline_wandb import read_run as read_offline

        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        for name, value in {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        monkeypatch.setenv("HOME", str(tmp_path))
        folder = train("logger=wandb")
        wandb.teardown()  # only then has wandb written all that was logged
        [offline] = (folder / "wandb").glob("offline-run-*")
        logged = read_offline(offline)
        theirs = run_from_wandb(
            "me/project/1", logged.config, logged.summary, "finished", "2026-01-01T00:00:00Z", logged.history
        )
        ours = read_run(folder, 10)
        assert theirs.problem is None
        assert (theirs.grammar, theirs.model, theirs.seed) == (ours.grammar, ours.model, ours.seed)
        for protocol in (AT_MINIMUM, OVER_TRAINING):
            for measure in MEASURES:
                expected = protocol.value(ours.results, measure)
                assert protocol.value(theirs.results, measure) == (
                    None if expected is None else pytest.approx(expected)
                )
        assert not differences([theirs, ours])
        assert theirs.curves["Val/loss"] == (ours.curves["Val/loss"][0], pytest.approx(ours.curves["Val/loss"][1]))
        unfinished = run_from_wandb("me/project/2", logged.config, {"_step": 3}, "crashed")
        assert unfinished.problem == "without results in its summary: crashed"

    def test_without_a_key_it_is_one_line(self, tmp_path):
        command = [sys.executable, "-m", "rule_extrapolation.report", "wandb=me/project", "out=report"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=100
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: wandb=me/project: cannot be read: ")


ERRORS = {
    "": "runs=null: give either runs=<folders> or wandb=<entity/project>",
    "runs={runs} wandb=a/b": "give either runs=<folders> or wandb=",
    "runs=nowhere": "runs=nowhere: there is no such folder",
    "runs={empty}": "holds no run: no folder with a config.yaml",
    "runs={broken}": "none of these runs names its language and model",
    "runs={runs} by=seed": "by=seed: runs that differ in it are averaged",
    "runs={runs} out={runs}": "contains files that are not part of a report; name another folder",
    "runs={runs} out={file}": "is a file; name a folder",
    "runs={runs} by=optimizer.lrr": "by=optimizer.lrr: no run has such a key; did you mean optimizer.lr?",
    "runs={runs} mix=yes": "mix=yes: must be one of true, false",
    "runs={runs} completions=0": "completions=0: must be greater than 0",
    "wandb=project": "wandb=project: must be entity/project",
    "rnus=x": "rnus=x: no such key; did you mean runs?",
}


class TestErrors:
    @pytest.mark.parametrize(("arguments", "message"), ERRORS.items())
    def test_one_line_exit_2_and_nothing_written(self, folders, call, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "results.json").write_text("{")
        (tmp_path / "file").write_text("")
        places = {
            "runs": folders,
            "broken": tmp_path / "broken",
            "empty": tmp_path / "empty",
            "file": tmp_path / "file",
        }
        status, out, err = call(report.main, *(word.format(**places) for word in arguments.split()))
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ") and message in err
        assert not Path("report").exists()

    def test_torch_is_never_imported(self, folders, tmp_path):
        script = (
            "import sys; from rule_extrapolation.cli.report import main\n"
            "try: main()\n"
            "finally: print('torch' in sys.modules, 'matplotlib' in sys.modules)"
        )
        for words, expected in {("--help",): "False False", (f"runs={folders}/abN",): "False True"}.items():
            command = [sys.executable, "-c", script, *words]
            done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
            assert (done.returncode, done.stdout.splitlines()[-1]) == (0, expected), done.stderr


@pytest.mark.slow
def test_two_thousand_runs(folders, tmp_path):
    """All are read, and the page stays small enough to open."""
    config = (folders / "minlstm0" / "config.yaml").read_text()
    for i in range(2000):
        copy = tmp_path / "many" / str(i)
        shutil.copytree(folders / "minlstm0", copy)
        (copy / "config.yaml").write_text(re.sub(r"\bseed: 0", f"seed: {i}", config))
        edit(copy, {"seed": i})
    out = tmp_path / "report"
    printed = make_report(out, f"runs={tmp_path / 'many'}")
    assert "2000 runs: 2000 finished" in printed
    assert row_of(read_table(out, "aNbN"), "minlstm", "ours", AT_MINIMUM.title)["n"] == "2000"
    assert (out / "report.html").stat().st_size < 8e6
