"""The same runs as W&B has them: configuration and summary are those of config.yaml and results.json."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.reporting.runs import CURVE_POINTS, CURVES, RunRecord, is_curve, problem, step_offset


def run_from_wandb(
    source: str,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    state: str = "finished",
    created: str | None = None,
    history: list[Mapping[str, Any]] | None = None,
) -> RunRecord:
    """A run from what W&B keeps of it.

    Args:
        config, summary: as the runner has logged them: nested, the summary with the figures of the test at its top.
        state: W&B's own word for how it ended.
        created: when it began, in ISO 8601.
        history: rows as logged, each with its ``trainer/global_step``.
    """
    results = {key: value for key, value in plain(summary).items() if not key.startswith("_")}
    results["test"] = {key: value for key, value in results.items() if key.startswith("Test/")}
    run = RunRecord(source, plain(config), results)
    run.problem = problem(results, f"has no results in its summary: {state}")
    if created:
        run.time = datetime.fromisoformat(created.replace("Z", "+00:00")).timestamp()
    for row in history or []:
        for name, value in row.items():
            if is_curve(name):
                steps, values = run.curves.setdefault(name, ([], []))
                if isinstance(value, int | float):
                    steps.append(int(row["trainer/global_step"]) + step_offset(name))
                    values.append(value)
    return run


def plain(mapping: Any) -> Any:
    """Nested mappings as dicts, without W&B's own keys."""
    if not isinstance(mapping, Mapping):
        return mapping
    return {str(key): plain(value) for key, value in mapping.items() if key != "_wandb"}


def read_wandb(path: str, advance: Callable[[], None] = lambda: None) -> list[RunRecord]:
    """All runs of entity/project.

    Raises:
        ConfigError: there is no key, no network or no such project.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb

        api = wandb.Api(timeout=20)
        runs = []
        for found in api.runs(path):
            history = [
                row
                for name in CURVES
                for row in found.history(samples=CURVE_POINTS, keys=[name, "trainer/global_step"], pandas=False)
            ]
            about = (found.config, found.summary_metrics, found.state, found.created_at)
            runs.append(run_from_wandb("/".join(found.path), *about, history))
            advance()
    except Exception as error:  # wandb raises errors of many kinds, and those of requests
        raise ConfigError("wandb", path, f"cannot be read: {' '.join(str(error).split()) or repr(error)}") from error
    if not runs:
        raise ConfigError("wandb", path, "holds no run")
    return runs
