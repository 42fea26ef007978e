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

from rule_extrapolation.cli import report
from rule_extrapolation.reporting.comparison import average, differences, group_runs
from rule_extrapolation.reporting.figures import KINDS, draw_all, save
from rule_extrapolation.reporting.measures import AT_MINIMUM, MEASURES, OVER_TRAINING
from rule_extrapolation.reporting.page import render
from rule_extrapolation.reporting.published import published
from rule_extrapolation.reporting.runs import CURVE_POINTS, find_runs, read_run, read_run_folders, thinned
from rule_extrapolation.reporting.style import looks
from rule_extrapolation.reporting.table_files import as_csv, escaped
from rule_extrapolation.reporting.tables import csv_rows, language_tables, latex, markdown
from rule_extrapolation.reporting.wandb_runs import run_from_wandb

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
        for model in ("minlstm", "linear"):
            results = [read_results(real[f"{model}{seed}"]) for seed in (0, 1)]
            row = row_of(rows, model, "ours", "at minimum validation loss")
            names = {"test_loss": "loss", "id_rule_1": "ID/rule_1_accuracy", "id_rule_2": "ID/rule_2_accuracy"}
            names |= {"ood_rule_1": "OOD/rule_1_accuracy", "ood_rule_2_completion": "OOD/rule_2_completion_accuracy"}
            assert row["n"] == "2"
            for key, name in names.items():
                values = [result["test"][f"Test/{name}"] for result in results]
                assert float(row[f"{key}_mean"]) == pytest.approx(sum(values) / 2)
                assert float(row[f"{key}_std"]) == pytest.approx(statistics.stdev(values))
            row = row_of(rows, model, "ours", "best over training")
            losses = [result["over_training"]["Val/loss"] for result in results]
            assert float(row["test_loss_mean"]) == pytest.approx(sum(losses) / 2)
            known = [result["over_training"].get("Val/OOD/finished/rule_1_accuracy") for result in results]
            known = [value for value in known if value is not None]
            assert row["ood_rule_1_n"] == str(len(known))
            assert row["ood_rule_1_mean"] == "none finished" if not known else float(row["ood_rule_1_mean"])

    def test_references_are_those_of_the_runs(self, real):
        rows, results = rows_of(tables_of(real["minlstm0"])["aNbN"]), read_results(real["minlstm0"])
        [optimal] = [row for row in rows if row["source"] == "optimal"]
        assert float(optimal["test_loss_mean"]) == results["optimal_loss"]
        [chance] = [row for row in rows if row["source"] == "chance"]
        assert float(chance["ood_rule_1_mean"]) == pytest.approx(results["chance_levels"]["OOD/rule_1_accuracy"])

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
            assert all(line.endswith("\\\\") and line.count(" & ") == 8 for line in lines)
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
        assert names[-4:] == ["ngram (baseline)", "ngram (baseline)", "chance", "optimal"]
        assert "minlstm" in names[:-4] and not any("ngram" in name for name in names[:-4])
        row = row_of(rows, "ngram (baseline)", "ours", AT_MINIMUM.title)
        assert float(row["test_loss_mean"]) == read_results(trained("model=ngram"))["test"]["Test/loss"]


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
        for name, loss in {"linear0": 40.0, "linear1": 50.0}.items():
            edit(folders / name, {"test": read_results(folders / name)["test"] | {"Test/loss": loss}})
        runs = read_run_folders(find_runs([str(folders)]), 10)
        axes = next(ax for ax in draw_all(group_runs(runs))[0]["loss_and_rules"].axes if "aNbN" in ax.get_title("left"))
        own = [run.results["test"]["Test/loss"] for run in runs if run.source.endswith(("minlstm0", "minlstm1"))]
        assert max(own) < axes.get_xlim()[1] < 40
        assert "linear 40 to 50" in axes.get_xlabel()
        drawn = [x for line in axes.lines for x in line.get_xdata()]
        assert drawn.count(axes.get_xlim()[1]) == 2  # both, at the edge
        alone = draw_all(group_runs([run for run in runs if run.model == "linear"]))[0]["loss_and_rules"]
        assert alone.axes[0].get_xlabel() == "test loss" and alone.axes[0].get_xlim()[1] >= 50

    def test_error_bars_stay_between_0_and_1(self, folders):
        for name, accuracy in {"minlstm0": 0.0, "minlstm1": 1.0}.items():
            rule = {"Test/OOD/rule_1_accuracy": accuracy}
            edit(folders / name, {"test": read_results(folders / name)["test"] | rule})
        groups = group_runs(read_run_folders(find_runs([str(folders / "minlstm0"), str(folders / "minlstm1")]), 10))
        [bar] = draw_all(groups)[0]["summary"].axes[0].containers
        [segment] = bar.lines[2][0].get_segments()
        assert [y for _, y in segment] == [0, 1]  # the standard deviation is 0.71

    def test_each_row_has_its_own_chance(self, folders):
        """The linear model's completions end at its window, so that fewer of them finish by chance."""
        groups = [
            group for group in group_runs(read_run_folders(find_runs([str(folders)]), 10)) if group.grammar == "aNbN"
        ]
        for group, level in zip(groups, (0.2, 0.8)):
            for run in group.runs:
                run.results["chance_levels"]["OOD/rule_1_accuracy"] = level
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
