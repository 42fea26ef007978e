"""Read run folders, without their models: the configuration, results, curves, lengths and completions of each."""

from __future__ import annotations

import base64
import csv
import glob
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.reporting.measures import MEASURES, PROTOCOLS
from rule_extrapolation.runs.identity import WITHOUT_EFFECT, without
from rule_extrapolation.runs.run_folder import read_results

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

CURVES = ("Val/loss", "Val/OOD/rule_1_accuracy", "Dynamics/")
"""What is read of metrics.csv: names, or beginnings of names that end in a slash."""
CURVE_POINTS = 200
"""Of a longer curve, every so many."""

UNKNOWN = "unknown"
"""The language or model of a run that does not say."""

ALIKE = (
    *WITHOUT_EFFECT,
    *("seed", "seeds", "resume"),
    *("language", "label", "architecture", "experiment"),  # W&B's, beside the configuration
    *("callbacks.learning_rate", "callbacks.dynamics"),
    *("trainer.default_root_dir", "trainer.log_every_n_steps"),
)
"""Runs that differ in these keys, or below them, are of one configuration. So are those that differ in a ``seed`` or a
``dirpath`` of any group."""


@dataclass
class Run:
    """One run, whatever has become of it."""

    source: str
    """Its folder, or its path on W&B."""
    config: dict[str, Any]
    results: dict[str, Any]
    problem: str | None = None
    """Why it is not averaged; None: it has finished."""
    time: float = 0.0
    """When it ended, in seconds since 1970."""
    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    """By name as logged: steps that the weights have had, and values."""
    lengths: list[dict[str, float]] = field(default_factory=list)
    """The rows of the latest lengths.csv; empty where there is none."""
    prompt_lengths: list[dict[str, float]] = field(default_factory=list)
    """``length`` and the accuracies of its prompts, such as ``ID/rule_1_accuracy``: of the latest evaluation that has
    several lengths; empty where there is none."""
    completions: str | None = None
    """``pack``ed; None where there are none."""

    @property
    def grammar(self) -> str:
        """Its language, or text and level."""
        name = str(self.results.get("grammar") or named(self.config, "grammar"))
        return f"{name}_{self.text['level']}" if self.text else name

    @property
    def text(self) -> dict[str, Any] | None:
        """What results.json says of the text, of a run on one; its level alone where the run has not come so far."""
        grammar = self.config.get("grammar")
        is_text = isinstance(grammar, dict) and grammar.get("_target_") is None
        level = self.config.get("data", {}).get("level") if is_text else None
        return self.results.get("text") or (level and {"level": level})

    @property
    def model(self) -> str:
        return str(self.results.get("model") or named(self.config, "model"))

    @property
    def seed(self) -> int | None:
        return self.results.get("seed", self.config.get("seed"))

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration that runs are averaged within, as ``group.key``."""
        run_dir = self.config.get("run_dir")
        return {
            key: value.replace(run_dir, "<run_dir>") if run_dir and isinstance(value, str) else value
            for key, value in flatten(without(self.config, ALIKE)).items()
            if key.rpartition(".")[2] not in ("seed", "dirpath")
        }


def named(config: dict[str, Any], group: str) -> str:
    node = config.get(group)
    return node.get("name", UNKNOWN) if isinstance(node, dict) else UNKNOWN


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots; lists as text."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value) if isinstance(value, list | dict) else value
    return flat


def find_runs(places: Iterable[str]) -> list[Path]:
    """The run folders among and below the given folders, which may be globs.

    Raises:
        ConfigError: a place is none, or no run is there.
    """
    found: dict[Path, None] = {}
    for place in places:
        folders = [Path(path) for path in sorted(glob.glob(os.path.expanduser(place), recursive=True))]
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
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "wandb")
    return runs


def read_run(folder: Path, most_completions: int) -> Run:
    """Read a run folder. What cannot be read becomes the run's problem.

    Args:
        most_completions: how many of each prompt set are kept.
    """
    source = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    run = Run(source, {}, {}, time=folder.stat().st_mtime)
    try:
        if (folder / "config.yaml").is_file():
            run.config = yaml.load((folder / "config.yaml").read_bytes(), Loader) or {}
        if (folder / "results.json").is_file():
            run.results = read_results(folder)
            run.time = (folder / "results.json").stat().st_mtime
        run.curves = read_curves(folder / "metrics.csv")
        run.lengths = read_lengths(folder)
        run.prompt_lengths = read_prompt_lengths(folder)
        run.completions = read_completions(folder / "completions.csv", most_completions)
        run.problem = problem(run.results, "has no results.json: under way, or killed")
        if run.problem is None and not run.config:
            run.problem = "has no config.yaml"
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        run.problem = f"cannot be read: {' '.join(str(error).split())}"
    return run


def problem(results: dict[str, Any], without: str) -> str | None:
    """Why a run is not averaged, by its results; ``without``: what it is called if it has none."""
    status = results.get("status")
    if status == "finished":
        return None
    reasons = {
        None: without,
        "diverged": "diverged: its loss is not finite",
        "failed": f"failed: {' '.join(str(results.get('error')).split())}",
    }
    return reasons.get(status, str(status))


def read_curves(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    if not path.is_file() or not path.stat().st_size:
        return {}

    def wanted(name: str) -> bool:
        return name == "step" or any(name == curve or (curve[-1] == "/" and name.startswith(curve)) for curve in CURVES)

    table = pd.read_csv(path, usecols=wanted)
    curves = {}
    for name in table.columns.drop("step"):
        points = table[["step", name]].dropna()
        # Lightning logs a validation at the number of the last step, Dynamics at how many there have been.
        steps = points["step"].astype(int) + (not name.startswith("Dynamics/"))
        if len(points):
            curves[name] = thinned(steps.tolist()), thinned(points[name].tolist())
    return curves


def thinned(values: list[Any]) -> list[Any]:
    """At most about CURVE_POINTS of them, evenly, the last one included."""
    stride = -(-len(values) // CURVE_POINTS)
    return values if stride <= 1 else [*values[:-1:stride], values[-1]]


def read_lengths(folder: Path) -> list[dict[str, float]]:
    """The rows of the latest evaluation that has lengths; their names say when they were made."""
    evaluations = folder / "evaluations"
    paths = sorted(evaluations.glob("*/lengths.csv")) if evaluations.is_dir() else []
    if not paths:
        return []
    with open(paths[-1], newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def read_prompt_lengths(folder: Path) -> list[dict[str, float]]:
    for path in sorted(folder.glob("evaluations/*/evaluation.json"), reverse=True):
        lengths = json.loads(path.read_text()).get("prompt_length", {})
        if len(lengths) > 1:
            of_length = {int(length): figures["test"] for length, figures in lengths.items()}
            return [
                {"length": length, **{name.removeprefix("Test/"): value for name, value in of_length[length].items()}}
                for length in sorted(of_length)
            ]
    return []


def read_completions(path: Path, most: int) -> str | None:
    if not path.is_file():
        return None
    with open(path, newline="") as file:
        columns, *rows = list(csv.reader(file)) or [[]]
    return pack(columns, rows, most) if rows else None


def pack(columns: list[str], rows: list[list[str]], most: int) -> str:
    """The rows of completions.csv for the page, compressed: of each prompt set at most ``most``, evenly over the set.

    Equal ones are one, with their number. It is base64 of zlib of JSON: {"verdicts": names, "sets": {set: {"of": rows
    in the file, "different": how many of them, "rows": [[prompt, completion, verdicts as 0s and 1s, number], ...]}}}.
    """
    sets: dict[str, list[list[str]]] = {}
    for row in rows:
        sets.setdefault(row[0], []).append(row)
    packed = {}
    for name, of_set in sets.items():
        different = Counter(
            (row[1], row[2], "".join("1" if verdict == "True" else "0" for verdict in row[3:])) for row in of_set
        )
        folded = [[*row, number] for row, number in different.items()]
        kept = [folded[i * len(folded) // most] for i in range(most)] if len(folded) > most else folded
        packed[name] = {"of": len(of_set), "different": len(folded), "rows": kept}
    text = json.dumps({"verdicts": columns[3:], "sets": packed}, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def frame(runs: list[Run]) -> pd.DataFrame:
    """A row for each run: what it is, what has become of it, and each figure under each protocol."""
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
            "seconds": run.results.get("seconds", {}).get("total"),
        }
        for protocol in PROTOCOLS:
            row |= {f"{protocol.key}/{measure.key}": protocol.value(run.results, measure) for measure in MEASURES}
        rows.append(row)
    return pd.DataFrame(rows)


def read_runs(folders: list[Path], most_completions: int, advance: Callable[[], None] = lambda: None) -> list[Run]:
    """Read them all, calling ``advance`` behind each."""
    runs = []
    for folder in folders:
        runs.append(read_run(folder, most_completions))
        advance()
    return runs
