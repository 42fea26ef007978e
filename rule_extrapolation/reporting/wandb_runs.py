"""Read runs from W&B, where configuration and summary have the content of config.yaml and results.json."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.reporting.runs import CURVE_POINTS, CURVES, OOD_RULES, RunRecord, is_curve, problem, step_offset


def run_from_wandb(
    source: str,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    state: str = "finished",
    created: str | None = None,
    history: list[Mapping[str, Any]] | None = None,
) -> RunRecord:
    """Make a run's record from what W&B stores.

    Args:
        source: the run's path on W&B.
        config, summary: as logged by the runner, nested, with the test's figures at the top level of the summary.
        state: W&B's state of the run, such as "crashed".
        created: when the run began, in ISO 8601.
        history: logged rows, each with its ``trainer/global_step``.
    """
    results = {key: value for key, value in plain(summary).items() if not key.startswith("_")}
    results["test"] = {key: value for key, value in results.items() if key.startswith("Test/")}
    run = RunRecord(source, plain(config), results)
    run.problem = problem(results, f"without results in its summary: {state}")
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
    """Nested mappings as dicts, without the keys that W&B adds."""
    if not isinstance(mapping, Mapping):
        return mapping
    return {str(key): plain(value) for key, value in mapping.items() if key != "_wandb"}


def read_wandb(path: str, advance: Callable[[], None] = lambda: None) -> list[RunRecord]:
    """Read all runs of a project.

    Args:
        path: entity/project.
        advance: called after each run.

    Raises:
        ConfigError: there is no API key, no network, no such project or no run in it.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb

        api = wandb.Api(timeout=20)
        runs = []
        for found in api.runs(path):
            history = [
                row
                for name in (*CURVES, *filter(OOD_RULES.fullmatch, found.summary_metrics.keys()))
                for row in found.history(samples=CURVE_POINTS, keys=[name, "trainer/global_step"], pandas=False)
            ]
            about = (found.config, found.summary_metrics, found.state, found.created_at)
            runs.append(run_from_wandb("/".join(found.path), *about, history))
            advance()
    except Exception as error:  # wandb raises many kinds of errors, also those of requests
        raise ConfigError("wandb", path, f"cannot be read: {' '.join(str(error).split()) or repr(error)}") from error
    if not runs:
        raise ConfigError("wandb", path, "holds no run")
    return runs
