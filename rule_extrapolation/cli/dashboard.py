"""Make a W&B view of many runs: rule-extrapolation dashboard entity=<entity>"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rule_extrapolation.cli.arguments import command
from rule_extrapolation.cli.pipes import ends_with_pipe
from rule_extrapolation.core.errors import ConfigError, check_choice
from rule_extrapolation.grammars import ALIASES, LANGUAGES, language_class
from rule_extrapolation.grammars.titles import title

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

    from rule_extrapolation.grammars.grammar import Grammar

USAGE = """\
Make a saved view of a W&B project: accuracies of all rules by step, loss against the optimum, and final figures. Each
line is the mean over the seeds of one architecture on one language.

  rule-extrapolation dashboard entity=<you or your team>
  rule-extrapolation dashboard entity=<you or your team> project=rule_extrapolation grammar=L3
  rule-extrapolation dashboard entity=<you or your team> out=dashboard.json

With a W&B key, the view is saved there and its address is printed; out= writes it to a file."""

STEP = "trainer/global_step"
LOSSES = {
    "Validation loss": "Val/loss",
    "Validation loss above the optimum": "Val/kl",
    "Validation loss, PAD left out": "Val/loss_ignore_pad",
    "Training loss": "Train/loss",
}
"""Titles and metrics of the line plots of losses."""


@dataclass
class Arguments:
    entity: Annotated[str, "owner of the W&B project"]
    project: Annotated[str, "project that the runs are in"] = "rule_extrapolation"
    grammar: Annotated[str | None, "show only runs on this language; default: all"] = None
    out: Annotated[str | None, "a JSON file to write the view to"] = None


def installed_languages() -> Iterator[type[Grammar]]:
    """All languages but those of other packages that cannot be imported, which ``languages`` reports."""
    for name in LANGUAGES:
        with contextlib.suppress(ConfigError):
            yield language_class(name)


def rules_of(languages: Iterable[type[Grammar]]) -> dict[str, list[str]]:
    """The metrics of all rules of some languages by prompt set, without ``_accuracy``.

    On ID prompts they are all rules; on OOD prompts those that a completion can repair, and those that are read on the
    completion alone.
    """
    found: dict[str, dict[str, None]] = {"ID": {}, "OOD": {}}
    for language in languages:
        found["ID"] |= dict.fromkeys(language.rules)
        found["OOD"] |= dict.fromkeys(language.repairable_rules)
        found["OOD"] |= dict.fromkeys(f"{rule}_completion" for rule in language.completion_rules)
    return {prompts: list(metrics) for prompts, metrics in found.items()}


def sections(rules: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """Titles and metrics of the line plots, by section."""
    shown = {f"{prompts}, {title(metric)}": (prompts, metric) for prompts in rules for metric in rules[prompts]}
    over_all = {name: f"Val/{prompts}/{metric}_accuracy" for name, (prompts, metric) in shown.items()}
    finished = {
        f"{name}, finished completions": f"Val/{prompts}/finished/{metric}_accuracy"
        for name, (prompts, metric) in shown.items()
        if prompts == "OOD"
    }
    shares = {name: f"Val/{name}/finished_accuracy" for name in ("ID", "OOD", "SOS")}
    return {"Rules": over_all | finished, "Loss": LOSSES, "Finished completions": shares}


def bars(rules: dict[str, list[str]]) -> dict[str, str]:
    """Titles and metrics of the bar plots, of the best checkpoint."""
    shown = {
        f"{prompts}, {title(metric)}": f"Test/{prompts}/{metric}_accuracy"
        for prompts in rules
        for metric in rules[prompts]
    }
    return shown | {"Finished, OOD": "Test/OOD/finished_accuracy"}


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

    language = ALIASES.get(arguments.grammar, arguments.grammar)
    rules = rules_of([language_class(language)] if language else installed_languages())
    final = [panels.BarPlot(title=title, metrics=[metric], range_x=(0, 1)) for title, metric in bars(rules).items()]
    loss = panels.ScatterPlot(
        title="Test loss against the optimum",
        x=panels.SummaryMetric("optimal_loss"),
        y=panels.SummaryMetric("Test/loss"),
    )
    plots = {name: lines(titled) for name, titled in sections(rules).items()} | {"Best checkpoint": [loss, *final]}
    return workspaces.Workspace(
        entity=arguments.entity,
        project=arguments.project,
        name="Rule extrapolation" + (f", {language}" if language else ""),
        sections=[workspaces.Section(name, panels=shown, is_open=True) for name, shown in plots.items()],
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
