"""Make a W&B view of many runs: rule-extrapolation dashboard entity=<entity>"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rule_extrapolation.cli.arguments import command
from rule_extrapolation.cli.pipes import ends_with_pipe
from rule_extrapolation.core.errors import ConfigError, check_choice
from rule_extrapolation.grammars import ALIASES, LANGUAGES

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

USAGE = """\
Make a saved view of a W&B project: rule accuracies by step, loss against the optimum, and final figures. Each line is
the mean over the seeds of one architecture on one language.

  rule-extrapolation dashboard entity=<you or your team>
  rule-extrapolation dashboard entity=<you or your team> project=rule_extrapolation grammar=L3
  rule-extrapolation dashboard entity=<you or your team> out=dashboard.json

With a W&B key, the view is saved there and its address is printed; out= writes it to a file."""

STEP = "trainer/global_step"
SECTIONS = {
    "Rules": {
        "ID, R1": "Val/ID/rule_1_accuracy",
        "ID, R2": "Val/ID/rule_2_accuracy",
        "OOD, R1": "Val/OOD/rule_1_accuracy",
        "OOD, R2 of the completion": "Val/OOD/rule_2_completion_accuracy",
        "OOD, R1, finished completions": "Val/OOD/finished/rule_1_accuracy",
        "OOD, R2 of finished completions": "Val/OOD/finished/rule_2_completion_accuracy",
    },
    "Loss": {
        "Validation loss": "Val/loss",
        "Validation loss above the optimum": "Val/kl",
        "Validation loss, PAD left out": "Val/loss_ignore_pad",
        "Training loss": "Train/loss",
    },
    "Finished completions": {name: f"Val/{name}/finished_accuracy" for name in ("ID", "OOD", "SOS")},
}
"""Titles and metrics of the line plots, by section."""
FINAL = {
    "ID, R1": "Test/ID/rule_1_accuracy",
    "ID, R2": "Test/ID/rule_2_accuracy",
    "OOD, R1": "Test/OOD/rule_1_accuracy",
    "OOD, R2 of the completion": "Test/OOD/rule_2_completion_accuracy",
    "Finished, OOD": "Test/OOD/finished_accuracy",
}
"""Titles and metrics of the bar plots, of the best checkpoint."""


@dataclass
class Arguments:
    entity: Annotated[str, "owner of the W&B project"]
    project: Annotated[str, "project that the runs are in"] = "rule_extrapolation"
    grammar: Annotated[str | None, "show only runs on this language; default: all"] = None
    out: Annotated[str | None, "a JSON file to write the view to"] = None


def build(arguments: Arguments) -> Workspace:
    """Build the view without sending anything.

    Raises:
        ConfigError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        from wandb_workspaces import expr, workspaces
    except ImportError as error:
        fix = "needs the package wandb-workspaces: pip install wandb-workspaces"
        raise ConfigError("dashboard", arguments.project, fix) from error

    def lines(titled: dict[str, str]) -> list[Any]:
        return [
            panels.LinePlot(title=title, x=STEP, y=[metric], log_y=metric == "Val/kl" or None)
            for title, metric in titled.items()
        ]

    final = [panels.BarPlot(title=title, metrics=[metric], range_x=(0, 1)) for title, metric in FINAL.items()]
    loss = panels.ScatterPlot(
        title="Test loss against the optimum",
        x=panels.SummaryMetric("optimal_loss"),
        y=panels.SummaryMetric("Test/loss"),
    )
    sections = [workspaces.Section(name, panels=lines(titled), is_open=True) for name, titled in SECTIONS.items()]
    sections.append(workspaces.Section("Best checkpoint", panels=[loss, *final], is_open=True))
    language = ALIASES.get(arguments.grammar, arguments.grammar)
    return workspaces.Workspace(
        entity=arguments.entity,
        project=arguments.project,
        name="Rule extrapolation" + (f", {language}" if language else ""),
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=[expr.Config("language") == language] if language else [],
            groupby=[expr.Config("language"), expr.Config("architecture")],
        ),
        auto_generate_panels=False,
    )


def as_json(workspace: Workspace) -> dict[str, Any]:
    """The view as it is sent to W&B."""
    return json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def dashboard(arguments: Arguments) -> None:
    if arguments.grammar is not None:
        check_choice([*ALIASES, *LANGUAGES], grammar=arguments.grammar)
    if arguments.out is not None and not Path(arguments.out).absolute().parent.is_dir():
        raise ConfigError("out", arguments.out, "there is no such folder; make it, or name another")
    # Read on import; training/loggers/wandb.py says why.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    workspace = build(arguments)
    if arguments.out is not None:
        Path(arguments.out).write_text(json.dumps(as_json(workspace), indent=2) + "\n")
        print(f"Written: {arguments.out}")
    save(workspace, required=arguments.out is None)


def save(workspace: Workspace, required: bool) -> None:
    """Save the view in W&B and print its address, or one line if there is no key or no server.

    Raises:
        ConfigError: the server rejects it; or, if ``required``, there is no key or no server.
    """
    import wandb

    from rule_extrapolation.training.loggers.wandb import why_offline

    where = f"{workspace.entity}/{workspace.project}"
    reason = why_offline(wandb.setup().settings)
    if reason is not None and required:
        raise ConfigError("entity", workspace.entity, f"{reason}, so nothing can be saved; use out=<file> instead")
    if reason is not None:
        return print(f"W&B: {reason}, not saved there")
    try:
        workspace.save()
    except Exception as error:
        reason = str(error).partition("\n")[0] or repr(error)
        raise ConfigError("project", where, f"W&B rejects the view: {reason}") from error
    print(f"W&B: {workspace.url}")


@ends_with_pipe
def main() -> None:
    command(dashboard, Arguments, USAGE)


if __name__ == "__main__":
    main()
