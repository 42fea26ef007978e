"""Read run folders, without their models: configuration, results, curves, evaluations and completions."""

from __future__ import annotations

import base64
import csv
import glob
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.names import check_file_name, is_file_name
from rule_extrapolation.reporting.measures import MEASURES, PROTOCOLS
from rule_extrapolation.runs.evaluations import read_lengths, read_prompt_lengths
from rule_extrapolation.runs.identity import WITHOUT_EFFECT, flatten, without
from rule_extrapolation.runs.run_folder import is_set_aside, read_plain_config, read_results

CURVES = ("Val/loss", "Val/OOD/finished_accuracy")
"""The columns of metrics.csv that are read, in addition to OOD_RULES and those of DYNAMICS."""
OOD_RULES = re.compile(r"Val/OOD/finished/(?!(finished|empty|grammatical)_)\w+(?<!_repaired)(?<!_completion)_accuracy")
"""The accuracy of a rule on OOD prompts, over finished completions."""
DYNAMICS = "Dynamics/"
CURVE_POINTS = 200
"""Longer curves are thinned to about this many points."""

UNKNOWN = "unknown"
"""The language or model of a run whose files do not name it."""

AVERAGED_OVER = (
    *WITHOUT_EFFECT,
    *("seed", "seeds", "resume"),
    *("language", "label", "architecture", "experiment"),  # added to the configuration on W&B
    *("callbacks.learning_rate", "callbacks.dynamics"),
    *("trainer.default_root_dir", "trainer.log_every_n_steps"),
)
"""Runs that differ only in these keys, or in keys below them, have the same configuration. The keys ``seed``,
``shuffle_seed`` and ``dirpath`` of any group do not count either."""


@dataclass(repr=False)
class RunRecord:
    """What the files of a run say, whether or not it has finished."""

    source: str
    """The run's folder, or its path on W&B."""
    config: dict[str, Any]
    results: dict[str, Any]
    problem: str | None = None
    """Why the run is not averaged, or None if it has finished."""
    time: float = 0.0
    """When the run ended, in seconds since 1970."""
    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    """By logged name, the numbers of steps that the weights have had, and the values there."""
    lengths: list[dict[str, float]] = field(default_factory=list)
    """The rows of the latest lengths.csv; empty if there is none."""
    prompt_lengths: list[dict[str, float]] = field(default_factory=list)
    """For each ``length``, the accuracies on its prompts, such as ``ID/rule_1_accuracy``, of the latest evaluation with
    several lengths; empty if there is none."""
    completions: str | None = None
    """The completions as ``pack`` returns them, or None."""

    def __repr__(self) -> str:
        return (
            f"RunRecord: {self.model} on {self.grammar}, seed {self.seed}, {self.problem or 'finished'}, {self.source}"
        )

    @property
    def grammar(self) -> str:
        """The language, or the text and its level."""
        name = self.stated_grammar
        return name if is_file_name(name) else UNKNOWN

    @property
    def stated_grammar(self) -> str:
        """What the run's files say, which may not be the name of anything."""
        name = str(self.results.get("grammar") or named(self.config, "grammar"))
        return f"{name}_{self.text['level']}" if self.text else name

    @property
    def text(self) -> dict[str, Any] | None:
        """What results.json says about the text of a run on one, or only its level if there are no results yet."""
        grammar = self.config.get("grammar")
        no_language = isinstance(grammar, dict) and grammar.get("_target_") is None
        level = self.config.get("data", {}).get("level") if no_language else None
        return self.results.get("text") or (level and {"level": level})

    @property
    def model(self) -> str:
        return str(self.results.get("model") or named(self.config, "model"))

    @property
    def seed(self) -> int | None:
        return self.results.get("seed", self.config.get("seed"))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in which averaged runs must agree, with dotted keys."""
        run_dir = self.config.get("run_dir")
        settings = {}
        for key, value in flatten(without(self.config, AVERAGED_OVER)).items():
            if key.rpartition(".")[2] not in ("seed", "shuffle_seed", "dirpath"):
                value = str(value) if isinstance(value, list | dict) else value
                settings[key] = value.replace(run_dir, "<run_dir>") if run_dir and isinstance(value, str) else value
        return settings


def named(config: dict[str, Any], group: str) -> str:
    """The name of a group's choice in a configuration."""
    node = config.get(group)
    return node.get("name", UNKNOWN) if isinstance(node, dict) else UNKNOWN


def find_runs(places: Iterable[str]) -> list[Path]:
    """The run folders among and below the given folders, which may be globs.

    Raises:
        ConfigError: a folder does not exist, or there is no run in it.
    """
    found: dict[Path, None] = {}
    for place in places:
        literal = Path(os.path.expanduser(place))  # whose name may have the brackets of a glob
        folders = [literal] if literal.exists() else sorted(map(Path, glob.glob(str(literal), recursive=True)))
        folders = [folder for folder in folders if folder.is_dir()]
        if not folders:
            raise ConfigError("runs", place, "there is no such folder; name run folders, folders of them, or a glob")
        before = len(found)
        found |= dict.fromkeys(run.resolve() for folder in folders for run in runs_below(folder))
        if len(found) == before:
            raise ConfigError("runs", place, "holds no run: no folder with a config.yaml or results.json in it")
    return list(found)


def runs_below(folder: Path) -> list[Path]:
    runs = []
    for path, folders, files in os.walk(folder):
        if "results.json" in files or ("config.yaml" in files and (".hydra" in folders or "metrics.csv" in files)):
            runs.append(Path(path))
            folders.clear()
        kept = (name for name in folders if not name.startswith(".") and name != "wandb" and not is_set_aside(name))
        folders[:] = sorted(kept)
    return runs


def read_run(folder: Path, most_completions: int) -> RunRecord:
    """Read a run folder. An error becomes the run's ``problem``.

    Args:
        most_completions: how many distinct completions of each prompt set to keep.
    """
    source = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    run = RunRecord(source, {}, {}, time=folder.stat().st_mtime)
    try:
        if (folder / "config.yaml").is_file():
            run.config = read_plain_config(folder)
        if results := read_results(folder):
            run.results = results
            run.time = (folder / "results.json").stat().st_mtime
        run.curves = read_curves(folder / "metrics.csv")
        run.lengths = read_lengths(folder)
        run.prompt_lengths = read_prompt_lengths(folder)
        run.completions = read_completions(folder / "completions.csv", most_completions)
        run.problem = problem(run.results, "without results.json: running, or killed")
        if run.problem is None and not run.config:
            run.problem = "without config.yaml"
        check_file_name(grammar=run.stated_grammar)
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        run.problem = f"unreadable: {' '.join(str(error).split())}"
    return run


def problem(results: dict[str, Any], no_results: str) -> str | None:
    """Why a run with these results is not averaged, or None if it has finished; ``no_results`` if it has none."""
    status = results.get("status")
    if status == "finished":
        return None
    reasons = {
        None: no_results,
        "diverged": "diverged: its loss is not finite",
        "failed": f"failed: {' '.join(str(results.get('error')).split())}",
    }
    return reasons.get(status, str(status))


def is_curve(name: str) -> bool:
    return name in CURVES or name.startswith(DYNAMICS) or OOD_RULES.fullmatch(name) is not None


def step_offset(name: str) -> int:
    """What to add to a logged step to get the number of steps that the weights have had.

    Lightning logs a validation at the number of the last step, counted from 0; Dynamics logs the number of steps.
    """
    return 0 if name.startswith(DYNAMICS) else 1


def read_curves(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    if not path.is_file() or not path.stat().st_size:
        return {}

    table = pd.read_csv(path, usecols=lambda name: name == "step" or is_curve(name))
    curves = {}
    for name in table.columns.drop("step"):
        points = table[["step", name]].dropna()
        steps = points["step"].astype(int) + step_offset(name)
        if len(points):
            curves[name] = thinned(steps.tolist()), thinned(points[name].tolist())
    return curves


def thinned(values: list[Any]) -> list[Any]:
    """About CURVE_POINTS of the values at equal distances, with the last one."""
    stride = -(-len(values) // CURVE_POINTS)
    return values if stride <= 1 else [*values[:-1:stride], values[-1]]


def read_completions(path: Path, most: int) -> str | None:
    if not path.is_file():
        return None
    with open(path, newline="") as file:
        columns, *rows = list(csv.reader(file)) or [[]]
    return pack(columns, rows, most) if rows else None


def pack(columns: list[str], rows: list[list[str]], most: int) -> str:
    """Compress the rows of completions.csv for the page.

    Identical rows are merged, and at most ``most`` rows of each prompt set are kept, at equal distances in the set.

    Returns:
        base64 of zlib of the JSON {"verdicts": names, "sets": {prompt set: {"of": number of rows in the file,
        "different": number of distinct rows, "rows": [[prompt, completion, verdicts as 0s and 1s, times], ...]}}}.
    """
    sets: dict[str, list[list[str]]] = {}
    for row in rows:
        sets.setdefault(row[0], []).append(row)
    packed = {}
    for name, members in sets.items():
        counts = Counter(
            (row[1], row[2], "".join("1" if verdict == "True" else "0" for verdict in row[3:])) for row in members
        )
        distinct = [[*row, times] for row, times in counts.items()]
        kept = [distinct[i * len(distinct) // most] for i in range(most)] if len(distinct) > most else distinct
        packed[name] = {"of": len(members), "different": len(distinct), "rows": kept}
    text = json.dumps({"verdicts": columns[3:], "sets": packed}, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def frame(runs: list[RunRecord]) -> pd.DataFrame:
    """A data frame with a row for each run: what was run, its status, and each figure under each protocol.

    Accuracies are over finished completions; those over all completions follow as ``over_all``.
    """
    rows = []
    for run in runs:
        row = {
            "run": run.source,
            "grammar": run.grammar,
            "label": run.results.get("label"),
            "model": run.model,
            "seed": run.seed,
            "status": run.results.get("status", "unfinished"),
            "problem": run.problem,
            "caveat": run.results.get("caveat"),
            "parameters": run.results.get("num_parameters"),
            "optimal_loss": run.results.get("optimal_loss"),
            "optimal_loss_on_test_words": run.results.get("optimal_loss_on_test_words"),
            "seconds": run.results.get("seconds", {}).get("total"),
        }
        for protocol in PROTOCOLS:
            row |= {f"{protocol.key}/{measure.key}": protocol.value(run.results, measure) for measure in MEASURES}
        for protocol in PROTOCOLS:
            for measure in MEASURES:
                if measure.name(finished=False) != measure.name():
                    value = protocol.value(run.results, measure, finished=False)
                    row[f"{protocol.key}/over_all/{measure.key}"] = value
        rows.append(row)
    return pd.DataFrame(rows)


def read_runs(*places: str | Path, most_completions: int = 64) -> list[RunRecord]:
    """Read all runs in and below some folders, failed ones too, without their models.

    >>> runs = read_runs("runs/sweeps/mini")  # doctest: +SKIP
    >>> frame(runs)  # doctest: +SKIP

    Args:
        places: run folders, folders that contain them, or globs.
        most_completions: how many distinct completions of each prompt set to keep.

    Raises:
        ConfigError: a folder does not exist, or there is no run in it.
    """
    return read_run_folders(find_runs(map(str, places)), most_completions)


def read_run_folders(
    folders: list[Path], most_completions: int, advance: Callable[[], None] = lambda: None
) -> list[RunRecord]:
    """Read run folders.

    Args:
        most_completions: how many distinct completions of each prompt set to keep.
        advance: called after each folder.
    """
    runs = []
    for folder in folders:
        runs.append(read_run(folder, most_completions))
        advance()
    return runs
