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
    from rule_extrapolation.reporting.tables import LanguageTable
    from rule_extrapolation.reporting.text_tables import TextTable

USAGE = """\
Compare runs in the paper's tables, in figures, and on a page with every run's completions.

  rule-extrapolation report runs=<folders or globs, separated by commas>
  rule-extrapolation report runs=runs/multirun/2026-01-31_12-00-00 out=first
  rule-extrapolation report runs=runs by=optimizer.lr,model.num_layers
  rule-extrapolation report wandb=<entity/project>

Runs that differ only in their seed are averaged; any other difference within a row is an error that names it."""

TABLE_FORMATS = ("md", "tex", "csv")


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
        raise ConfigError("out", arguments.out, "holds other files than a report; name another folder")


def report(arguments: Arguments) -> None:
    check(arguments)

    from rich.console import Console

    from rule_extrapolation.reporting.comparison import group_runs
    from rule_extrapolation.reporting.figures import draw_all
    from rule_extrapolation.reporting.page import render
    from rule_extrapolation.reporting.tables import language_tables
    from rule_extrapolation.reporting.text_tables import text_tables

    console = Console()
    runs, by = read(arguments, Console(stderr=True)), arguments.by or []
    groups = group_runs(runs, by, arguments.mix)
    if not groups:
        raise ConfigError("runs", ",".join(arguments.runs or [str(arguments.wandb)]), "no run there says what it is of")
    of_texts = [group for group in groups if any(run.text for run in group.runs + group.excluded)]
    groups = [group for group in groups if group not in of_texts]
    tables, texts = language_tables(groups, by), text_tables(of_texts, by)
    with Console(stderr=True).status("Drawing"):
        figures, left_out = draw_all(groups) if groups or not texts else ({}, {})
        svgs = write(Path(arguments.out), runs, tables, texts, figures)
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


def write(
    out: Path, runs: list[RunRecord], tables: list[LanguageTable], texts: list[TextTable], figures: dict
) -> dict[str, str]:
    """Write tables and figures, in place of an earlier report's. Returns the figures' SVGs."""
    from rule_extrapolation.reporting import tables as language_tables
    from rule_extrapolation.reporting import text_tables
    from rule_extrapolation.reporting.figures import FORMATS, KINDS, save
    from rule_extrapolation.reporting.overview import overview
    from rule_extrapolation.reporting.pairs import csv_rows as pair_rows
    from rule_extrapolation.reporting.runs import frame
    from rule_extrapolation.reporting.table_files import as_csv

    try:
        for name in ("tables", "figures"):
            (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("out", out, f"cannot be made: {error.strerror}") from error
    earlier = [out / "figures" / f"{name}.{format}" for name in KINDS for format in FORMATS]
    for path in [*earlier, *(path for format in TABLE_FORMATS for path in (out / "tables").glob(f"*.{format}"))]:
        path.unlink(missing_ok=True)
    contents = {table.grammar: language_tables.files(table) for table in tables}
    contents |= {table.grammar: text_tables.files(table) for table in texts}
    for name, by_format in contents.items():
        for format, content in by_format.items():
            (out / "tables" / f"{name}.{format}").write_text(content)
    every_row = [row for table in tables for row in language_tables.csv_rows(table)]
    if every_row:
        (out / "tables" / "all.csv").write_text(as_csv(every_row))
        (out / "tables" / "overview.md").write_text(overview(tables))
    every_pair = [row for table in tables if table.pairs for row in pair_rows(table.pairs)]
    if every_pair:
        (out / "tables" / "comparisons.csv").write_text(as_csv(every_pair))
    frame(runs).to_csv(out / "tables" / "runs.csv", index=False, na_rep="none")
    for name, figure in figures.items():
        save(figure, out / "figures", name)
    return {name: (out / "figures" / f"{name}.svg").read_text() for name in figures}


def print_tables(console: Console, tables: list[LanguageTable]) -> None:
    """Print the tables in short: our means at minimum validation loss, and the references."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from rule_extrapolation.reporting.measures import AT_MINIMUM, LOSS, MEASURES

    for table in tables:
        caption = f"means {AT_MINIMUM.title}, over finished completions"
        shown = Table(title=escape(table.title), caption=caption, box=SIMPLE_HEAD, padding=0)
        shown.add_column("architecture", overflow="fold", min_width=12)
        for title in ("n", *(measure.title for measure in MEASURES)):
            shown.add_column(short(title), justify="right", max_width=8 if title == LOSS.title else 6)
        ours = [row for row in table.rows if row.source == "ours" and row.protocol == AT_MINIMUM.title]
        references = [row for row in table.rows if row.n is None]
        for i, row in enumerate(ours):
            shown.add_row(*map(escape, map(short, row.mean_strings())), end_section=i == len(ours) - 1)
        for row in references:
            shown.add_row(*map(escape, map(short, row.mean_strings())), style="dim")
        console.print(shown)
        if table.sizes:
            console.print(table.sizes, style="yellow", highlight=False, soft_wrap=True)


def short(words: str) -> str:
    """Abbreviated, so that the tables fit into 80 columns."""
    shorter = {"finished": "fin.", "completion": "compl.", "repaired": "rep.", "not defined": "-", " prompts": ""}
    for word, letters in shorter.items():
        words = words.replace(word, letters)
    return words


def print_text_tables(console: Console, tables: list[TextTable]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from rule_extrapolation.reporting.text_tables import HEADER

    for table in tables:
        shown = Table(title=escape(table.title), caption="at minimum validation loss", box=SIMPLE_HEAD, padding=0)
        for title in HEADER:
            shown.add_column(title, justify="left" if title == HEADER[0] else "right")
        for row in table.rows:
            shown.add_row(*map(escape, row.strings()), style="dim" if row.n is None else None)
        console.print(shown)


def print_end(
    console: Console,
    runs: list[RunRecord],
    left_out: dict[str, str],
    out: Path,
    tables: list[str],
    figures: list[str],
) -> None:
    """How many runs there were, which are not averaged, and what has been written."""
    from rule_extrapolation.reporting.figures import KINDS
    from rule_extrapolation.reporting.page import count_in_words

    options = {"soft_wrap": True, "highlight": False, "markup": False}
    console.print(count_in_words(runs), **options)
    excluded = [run for run in runs if run.problem is not None]
    for run in excluded[:10]:
        console.print(f"not averaged: {run.source}: {run.problem}", style="yellow", **options)
    if len(excluded) > 10:
        console.print(
            f"not averaged: {len(excluded) - 10} more, see the page or tables/runs.csv", style="yellow", **options
        )
    for name, reason in left_out.items():
        console.print(f"no figure of {KINDS[name].title}: {reason}", style="yellow", **options)
    more = sorted(
        {"all.csv", "comparisons.csv", "overview.md", "runs.csv"} & {path.name for path in (out / "tables").iterdir()}
    )
    console.print(f"Tables: {out}/tables/ (.md, .tex and .csv of {', '.join(tables)}; {', '.join(more)})", **options)
    if figures:
        console.print(f"Figures: {out}/figures/ (.pdf, .svg and .png of {', '.join(figures)})", **options)
    console.print(f"Page: {out}/report.html", **options)


@ends_with_pipe
def main() -> None:
    command(report, Arguments, USAGE)


if __name__ == "__main__":
    main()
