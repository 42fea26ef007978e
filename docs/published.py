"""Writes docs/published.md: every published figure, the command that repeats it, and what we got.

    python docs/published.py

Our figures come from results/paper/tables/runs.csv, which rule-extrapolation report wrote.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rule_extrapolation.grammars import LANGUAGES
from rule_extrapolation.reporting.published import all_published

HERE = Path(__file__).parent
RUNS = HERE.parent / "results" / "paper" / "tables" / "runs.csv"
NONE = "–"
MEASURES = {
    "test_loss": "loss",
    "id_rule_1": "ID R1",
    "ood_rule_1": "OOD R1",
    "ood_rule_2_completion": "OOD R2 completion",
}
HEAD = """\
# Every published figure

Each row is a figure of [Mészáros et al., 2024](https://arxiv.org/abs/2409.13728), the command that repeats it, and what
we got. They are computed from the authors' per-run files, which `rule_extrapolation/reporting/published_results.csv`
names, as mean and standard deviation over n runs. Unless a heading says otherwise, a run's figure is its best over
training, and accuracies are over finished completions. [Reproducing the paper](paper.md) explains the options in the
commands and says which figures mislead.

The head of each table has the beginning of its commands, after `rule-extrapolation train`, and each row the rest. A
table without columns of ours has figures that we have not repeated yet.
"""
SECTIONS = {
    "main": (
        "Five architectures on six languages",
        "`seed=0,1,2` and `-m` give several seeds.",
    ),
    "sampling": (
        "Sampling",
        "Tokens are drawn from the model's distribution. On aNbN there are figures at minimum validation loss as well.",
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
        "These figures are at minimum validation loss.",
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


def our_runs() -> pd.DataFrame:
    """Our finished runs of the main experiment."""
    runs = pd.read_csv(RUNS, na_values="none")
    return runs[runs["status"] == "finished"]


def ours(row: pd.Series, runs: pd.DataFrame, measure: str) -> str:
    if row.experiment != "main":
        return NONE
    mine = runs[(runs["grammar"] == row.grammar) & (runs["model"] == row.model)][
        f"best_over_training/{measure}"
    ].dropna()
    return NONE if mine.empty else number(mine.mean(), mine.std(), measure)


def number(mean: float, std: float, measure: str) -> str:
    digits = 4 if measure == "test_loss" else 3
    spread = "" if pd.isna(std) else f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{std:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"


def table(published: pd.DataFrame, runs: pd.DataFrame, start: str) -> str:
    """A table with a line for each row: the rest of its command and each measure, published and, if there is one, ours.

    Args:
        start: what all commands begin with.
    """
    header, lines = [command_title(start), "n"], [[] for _ in range(len(published))]
    for row, line in zip(published.itertuples(), lines):
        line += [f"`{command(row).removeprefix(start).strip()}`" if command(row) else row.model, str(row.n_runs)]
    for measure, title in MEASURES.items():
        if published[f"{measure}_mean"].isna().all():
            continue
        mine = [ours(row, runs, measure) for row in published.itertuples()]
        any_of_ours = any(cell != NONE for cell in mine)
        header += [title, "ours"] if any_of_ours else [title]
        for row, line, own in zip(published.itertuples(), lines, mine):
            mean, std = getattr(row, f"{measure}_mean"), getattr(row, f"{measure}_std")
            line.append(NONE if pd.isna(mean) else number(mean, std, measure))
            line += [own] if any_of_ours else []
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *lines]) + "\n"


def command_title(start: str) -> str:
    return f"`{start}` and" if start else ""


def page() -> str:
    published, runs = rows(), our_runs()
    parts = [HEAD]
    for experiment, (title, text) in SECTIONS.items():
        of_experiment = published[published["experiment"] == experiment]
        parts.append(f"## {title}\n\n{text}\n")
        by = ["grammar", "protocol"]
        for (grammar, protocol), group in of_experiment.groupby(by, sort=False):
            remark = f", {protocol}" if of_experiment["protocol"].nunique() > 1 else ""
            start = f"experiment=paper/{grammar}" if experiment not in ("ood_training", "people") else ""
            parts += [f"**{grammar}{remark}**\n", table(group, runs, start)]
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "published.md").write_text(page())
