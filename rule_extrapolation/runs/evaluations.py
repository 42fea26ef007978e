"""The evaluations of a trained run, each in a folder evaluations/<time> within the run's."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from rule_extrapolation.runs.run_folder import commit, write_results, write_rows


def write_evaluation(run: Path, results: dict[str, Any], completions: list[dict[str, Any]]) -> Path:
    """Write evaluation.json, completions.csv and, if there are any, the figures by length of word as lengths.csv.

    Returns:
        The new folder.
    """
    folder = run / "evaluations" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    folder.mkdir(parents=True)
    write_results(folder, results | {"commit": commit()}, "evaluation.json")
    write_rows(folder / "completions.csv", completions)
    if results["lengths"]:
        write_rows(folder / "lengths.csv", list(results["lengths"].values()))
    return folder


def read_lengths(run: Path) -> list[dict[str, float]]:
    """The rows of the latest lengths.csv, or none. Evaluations are named by their time."""
    paths = sorted(run.glob("evaluations/*/lengths.csv"))
    if not paths:
        return []
    with open(paths[-1], newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def read_prompt_lengths(run: Path) -> list[dict[str, float]]:
    """For each length of prompts, its accuracies, of the latest evaluation with several lengths, or none."""
    for path in sorted(run.glob("evaluations/*/evaluation.json"), reverse=True):
        lengths = json.loads(path.read_text()).get("prompt_length", {})
        if len(lengths) > 1:
            figures = sorted((int(length), part["test"]) for length, part in lengths.items())
            return [
                {"length": length, **{name.removeprefix("Test/"): value for name, value in test.items()}}
                for length, test in figures
            ]
    return []
