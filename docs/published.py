"""Writes docs/published.md: every published figure, the command that repeats it, what we got, and a verdict.

    python docs/published.py

Our figures come from results/paper/tables/runs.csv, which rule-extrapolation report wrote.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from rule_extrapolation.grammars import LANGUAGES
from rule_extrapolation.reporting.comparison import Cell
from rule_extrapolation.reporting.measures import (
    LOSS,
    MEASURES,
    OOD_EMPTY,
    OOD_RULE_1_REPAIRED,
    OVER_TRAINING,
    Measure,
)
from rule_extrapolation.reporting.published import all_published
from rule_extrapolation.reporting.tables import published_cells

HERE = Path(__file__).parent
RUNS = HERE.parent / "results" / "paper" / "tables" / "runs.csv"
NONE = "–"
SHOWN = [measure for measure in MEASURES if measure not in (OOD_RULE_1_REPAIRED, OOD_EMPTY)]
"""The measures that the authors' files have."""
EQUAL, WITHIN, DIFFERS = "equal", "within 1 sd", "differs"
AS_FIRST = "as in the first section"
HEAD = """\
# Every published figure

Each row is a figure of [Mészáros et al., 2024](https://arxiv.org/abs/2409.13728), the command that repeats it, and what
we got. The published figures are computed from the authors' per-run files, which
`rule_extrapolation/reporting/published_results.csv` names, as mean and standard deviation over n runs. Unless a heading
says otherwise, a run's figure is its best over training. [Reproducing the paper](paper.md) explains the options in the
commands.

Accuracies are over finished completions. A published mean counts a run in which nothing finished as 0, so read it
beside OOD finished, the share that finishes. Where nothing finished in any run, the cell says so.

The head of each table has the beginning of its commands, after `rule-extrapolation train`, and each row the rest. A row
marked *{as_first}* has a row with the same command there. The authors have files of both experiments, with different
figures.

Our figures have a verdict: *{equal}* in the digits shown, *{within}* if they are at most one published standard
deviation apart, or *{differs}*. {summary} The end of the page lists [what we have not run](#what-we-have-not-run).
"""
SECTIONS = {
    "main": (
        "Five architectures on six languages",
        "`seed=0,1,2` and `-m` give several seeds. The loss of the linear model is mostly that of PAD, on which it is "
        "not trained: it is lowest at the first validation and grows from then on, on aNbN from 2.70 to 5.57 in our "
        "run. On parentheses_and_brackets and not_nested_parentheses_and_brackets it differs from the published one, "
        "and we have not found out why.",
    ),
    "sampling": (
        "Sampling",
        "Tokens are drawn from the model's distribution. On aNbN, the same runs have figures under two protocols.",
    ),
    "transformer_size": (
        "Size of the transformer",
        "In the authors' files, seeds recur within a row, so that n counts some runs twice.",
    ),
    "optimizers": (
        "Optimizers and learning rates",
        "SGD has neither momentum nor a schedule. The paper draws the figures of aNbN, aNbNcN, baN and bbaN.",
    ),
    "parity": (
        "Parity",
        "The paper prints these figures as R3, even length. In the authors' files they are OOD R1 of models trained on "
        "all n; R3 there is 0 or 1 for a whole run. `experiment=paper/parity` trains on even n only.",
    ),
    "ood_training": (
        "Training on OOD prompts",
        "These figures are at minimum validation loss. The authors' files do not have the share that finishes.",
    ),
    "people": (
        "People",
        "Fourteen people completed prompts.",
    ),
}


def rows() -> pd.DataFrame:
    """The rows of published_results.csv."""
    return all_published().fillna({"setting": "", "protocol": ""})


def command(row: pd.Series) -> str:
    """The arguments of the command that repeats a row."""
    language = f"experiment=paper/{row.grammar} model={row.model}"
    settings = dict(part.split("=") for part in row.setting.split(", ")) if "=" in row.setting else {}
    match row.experiment:
        case "sampling":
            words = " grammar.all_sequences=false" if "all_sequences" in LANGUAGES[row.grammar].options else ""
            return f"{language} decoding=sample{words}"
        case "transformer_size":
            heads, layers = settings["num_heads"], settings["num_layers"]
            return f"{language} model.num_heads={heads} model.num_decoder_layers={layers}"
        case "optimizers":
            plain = " optimizer=sgd optimizer.momentum=0 scheduler=constant"
            return f"{language}{plain if settings['optimizer'] == 'sgd' else ''} optimizer.lr={settings['lr']}"
        case "parity":
            return f"{language} model.num_blocks=7 model.embedding_dim=128" if row.model == "xlstm" else language
        case "ood_training":
            return f"experiment=paper/{row.setting}"
        case "people":
            return ""
    return language


def is_as_first(row: pd.Series) -> bool:
    """Whether a row of another experiment has the settings of the main one."""
    match row.experiment:
        case "transformer_size":
            return row.setting == "num_heads=5, num_layers=7"
        case "optimizers":
            return row.setting == "optimizer=adamw, lr=0.002"
        case "parity":
            return row.model != "xlstm"
    return False


def our_runs() -> pd.DataFrame:
    """Our finished runs of the main experiment."""
    runs = pd.read_csv(RUNS, na_values="none")
    return runs[runs["status"] == "finished"]


def our_cells(row: pd.Series, runs: pd.DataFrame) -> dict[str, Cell] | None:
    """Our figures by the measures' keys, None if we have not run it."""
    mine = runs[(runs["grammar"] == row.grammar) & (runs["model"] == row.model)]
    if row.experiment != "main" or mine.empty:
        return None
    return {measure.key: our_cell(mine[f"{OVER_TRAINING.key}/{measure.key}"].dropna()) for measure in SHOWN}


def our_cell(values: pd.Series) -> Cell:
    # A finished run has all figures but accuracies over no completion.
    return Cell(values.mean(), values.std(), len(values)) if len(values) else Cell(missing="none finished")


def verdict(ours: Cell, published: Cell, measure: Measure) -> str:
    """EQUAL, WITHIN or DIFFERS."""
    if number(ours, measure, spread=False) == number(published, measure, spread=False):
        return EQUAL
    if ours.mean is None or published.mean is None or published.std is None:
        return DIFFERS
    return WITHIN if abs(ours.mean - published.mean) <= published.std else DIFFERS


def number(cell: Cell, measure: Measure, spread: bool = True) -> str:
    if cell.mean is None:
        return NONE if cell.missing == "not published" else cell.missing
    digits = 4 if measure is LOSS else 3
    std = "" if not spread or pd.isna(cell.std) else f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{cell.std:.{digits}f}"
    return f"{cell.mean:.{digits}f}{std}"


def table(published: pd.DataFrame, runs: pd.DataFrame, start: str) -> str:
    """A table with a line for each row: the rest of its command and each measure, published and, if there is one, ours.

    Args:
        start: what all commands begin with.
    """
    rows = [row for _, row in published.iterrows()]
    figures = [published_cells(row) for row in rows]
    mine = [our_cells(row, runs) for row in rows]
    shown = [measure for measure in SHOWN if any(cells[measure.key].mean is not None for cells in figures)]
    header, lines = [command_title(start), "n"], [[first_cell(row, start), str(row.n_runs)] for row in rows]
    for measure in shown:
        header += [measure.title.removeprefix("test "), "ours"] if any(mine) else [measure.title.removeprefix("test ")]
        for line, cells, own in zip(lines, figures, mine):
            line.append(number(cells[measure.key], measure))
            if own is not None:
                judged = verdict(own[measure.key], cells[measure.key], measure)
                line.append(f"{number(own[measure.key], measure)} ({judged})")
            elif any(mine):
                line.append(NONE)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *lines]) + "\n"


def first_cell(row: pd.Series, start: str) -> str:
    if not command(row):
        return row.model
    remark = f" ({AS_FIRST})" if is_as_first(row) else ""
    return f"`{command(row).removeprefix(start).strip()}`{remark}"


def command_title(start: str) -> str:
    return f"`{start}` and" if start else ""


def summary(published: pd.DataFrame, runs: pd.DataFrame) -> str:
    """How many of our figures have which verdict."""
    verdicts = Counter(
        verdict(own[measure.key], cells[measure.key], measure)
        for _, row in published.iterrows()
        if (own := our_cells(row, runs)) is not None
        for cells in [published_cells(row)]
        for measure in SHOWN
    )
    return (
        f"Of our {verdicts.total()} figures, {verdicts[EQUAL]} are equal, {verdicts[WITHIN]} are within a standard "
        f"deviation, and {verdicts[DIFFERS]} differ."
    )


def not_run(published: pd.DataFrame, runs: pd.DataFrame) -> str:
    """A list of the rows without figures of ours, by experiment, and by language where we have run some."""
    lines = []
    for experiment, (title, _) in SECTIONS.items():
        rows = [row for _, row in published.iterrows() if row.experiment == experiment and command(row)]
        missing = [row for row in rows if our_cells(row, runs) is None]
        if missing and len(missing) == len(rows):
            lines.append(f"- {title}: none of the {len(rows)} rows.")
        elif missing:
            models, all_models = by_grammar(missing), by_grammar(rows)
            listed = "; ".join(
                f"{'all' if names == all_models[grammar] else ', '.join(names)} on {grammar}"
                for grammar, names in models.items()
            )
            lines.append(f"- {title}: {listed}.")
    return "\n".join(lines) + "\n"


def by_grammar(rows: list[pd.Series]) -> dict[str, list[str]]:
    models: dict[str, list[str]] = {}
    for row in rows:
        models.setdefault(row.grammar, []).append(row.model)
    return models


def page() -> str:
    published, runs = rows(), our_runs()
    words = {"as_first": AS_FIRST, "equal": EQUAL, "within": WITHIN, "differs": DIFFERS}
    parts = [HEAD.format(summary=summary(published, runs), **words)]
    for experiment, (title, text) in SECTIONS.items():
        of_experiment = published[published["experiment"] == experiment]
        parts.append(f"## {title}\n\n{text}\n")
        by = ["grammar", "protocol"]
        for (grammar, protocol), group in of_experiment.groupby(by, sort=False):
            remark = f", {protocol}" if of_experiment["protocol"].nunique() > 1 else ""
            start = f"experiment=paper/{grammar}" if experiment not in ("ood_training", "people") else ""
            parts += [f"**{grammar}{remark}**\n", table(group, runs, start)]
    parts.append(f"## What we have not run\n\n{not_run(published, runs)}")
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "published.md").write_text(page())
