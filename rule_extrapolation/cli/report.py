"""Compare runs in tables, figures and a page: rule-extrapolation report runs=<folders>"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rule_extrapolation.cli.arguments import command
from rule_extrapolation.cli.pipes import ends_with_pipe
from rule_extrapolation.core.errors import ConfigError, check_positive

if TYPE_CHECKING:
    from rich.console import Console

    from rule_extrapolation.reporting.runs import RunRecord

USAGE = """\
Compare runs in the paper's tables, in figures, and on a page with every run's completions.

  rule-extrapolation report runs=<folders or globs, separated by commas>
  rule-extrapolation report runs=runs/multirun/2026-01-31_12-00-00 out=first
  rule-extrapolation report runs=runs by=optimizer.lr,model.num_layers
  rule-extrapolation report wandb=<entity/project>

Runs that differ only in their seed are averaged; any other difference within a row is an error that names it."""


@dataclass
class Arguments:
    runs: Annotated[list[str] | None, "run folders, folders that contain them, or globs"] = None
    wandb: Annotated[str | None, "entity/project on W&B, in place of runs"] = None
    out: Annotated[str, "the folder to write to; an earlier report there is replaced"] = "report"
    by: Annotated[list[str] | None, "settings, such as optimizer.lr, that get a row for each value"] = None
    mix: Annotated[bool, "true: average over all configurations of an architecture on a language"] = False
    completions: Annotated[int, "most completions shown per prompt set and run on the page"] = 64
    title: Annotated[str, "of the page"] = "Rule extrapolation"


def check(arguments: Arguments) -> None:
    """Check the arguments before anything is read."""
    if (arguments.runs is None) == (arguments.wandb is None):
        raise ConfigError("runs", None, "give either runs=<folders> or wandb=<entity/project>")
    if arguments.wandb is not None and arguments.wandb.count("/") != 1:
        raise ConfigError("wandb", arguments.wandb, "must be entity/project")
    check_positive(completions=arguments.completions)
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ConfigError("out", arguments.out, "is a file; name a folder")
    if out.is_dir() and {path.name for path in out.iterdir()} - {"report.html", "tables", "figures"}:
        raise ConfigError("out", arguments.out, "contains files that are not part of a report; name another folder")


def report(arguments: Arguments) -> None:
    check(arguments)

    from rule_extrapolation.reporting.comparison import group_runs
    from rule_extrapolation.reporting.console import plain_console
    from rule_extrapolation.reporting.figures import draw_all
    from rule_extrapolation.reporting.page import render
    from rule_extrapolation.reporting.report_files import write_report
    from rule_extrapolation.reporting.report_terminal import print_end, print_tables, print_text_tables
    from rule_extrapolation.reporting.tables import language_tables
    from rule_extrapolation.reporting.text_tables import text_tables

    console = plain_console()
    runs, by = read(arguments, plain_console(stderr=True)), arguments.by or []
    groups = group_runs(runs, by, arguments.mix)
    if not groups:
        given = ",".join(arguments.runs or [str(arguments.wandb)])
        raise ConfigError("runs", given, "none of these runs names its language and model")
    of_texts = [group for group in groups if any(run.text for run in group.runs + group.excluded)]
    groups = [group for group in groups if group not in of_texts]
    tables, texts = language_tables(groups, by), text_tables(of_texts, by)
    with plain_console(stderr=True).status("Drawing"):
        figures, left_out = draw_all(groups) if groups or not texts else ({}, {})
        svgs = write_report(Path(arguments.out), runs, tables, texts, figures)
        page = render(arguments.title, runs, tables, texts, svgs, left_out, arguments.completions)
        (Path(arguments.out) / "report.html").write_text(page)
    print_tables(console, tables)
    print_text_tables(console, texts)
    names = [table.grammar for table in [*tables, *texts]]
    print_end(console, runs, left_out, Path(arguments.out), names, list(figures))


def read(arguments: Arguments, console: Console) -> list[RunRecord]:
    """The runs, with a progress bar where there is a terminal."""
    from rich.progress import MofNCompleteColumn, Progress

    from rule_extrapolation.reporting.runs import find_runs, read_run_folders

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        if arguments.wandb is not None:
            from rule_extrapolation.reporting.wandb_runs import read_wandb

            task = progress.add_task("Asking W&B", total=None)
            return read_wandb(arguments.wandb, lambda: progress.advance(task))
        task = progress.add_task("Looking for runs", total=None)
        folders = find_runs(arguments.runs or [])
        progress.update(task, description="Reading runs", total=len(folders))
        return read_run_folders(folders, arguments.completions, lambda: progress.advance(task))


@ends_with_pipe
def main() -> None:
    command(report, Arguments, USAGE)


if __name__ == "__main__":
    main()
