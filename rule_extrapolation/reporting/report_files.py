"""Write a report's tables and figures."""

from __future__ import annotations

import re
from pathlib import Path

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.reporting import tables as language_tables
from rule_extrapolation.reporting import text_tables
from rule_extrapolation.reporting.figures import FORMATS, KINDS, save
from rule_extrapolation.reporting.overview import overview
from rule_extrapolation.reporting.pairs import csv_rows as pair_rows
from rule_extrapolation.reporting.published import all_published
from rule_extrapolation.reporting.runs import RunRecord, frame
from rule_extrapolation.reporting.table_files import as_csv
from rule_extrapolation.reporting.tables import LanguageTable
from rule_extrapolation.reporting.text_tables import TextTable

TABLE_FORMATS = ("md", "tex", "csv")


def write_report(
    out: Path, runs: list[RunRecord], tables: list[LanguageTable], texts: list[TextTable], figures: dict
) -> dict[str, str]:
    """Write tables and figures, in place of an earlier report's. Returns the figures' SVGs."""
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
            (out / "tables" / f"{file_name(name)}.{format}").write_text(content)
    every_row = [row for table in tables for row in language_tables.csv_rows(table)]
    if every_row:
        (out / "tables" / "all.csv").write_text(as_csv(every_row))
        (out / "tables" / "overview.md").write_text(overview(tables))
    every_pair = [row for table in tables if table.pairs for row in pair_rows(table.pairs)]
    if every_pair:
        (out / "tables" / "comparisons.csv").write_text(as_csv(every_pair))
    theirs = all_published()
    theirs = theirs[theirs["grammar"].isin([table.grammar for table in tables])]
    if len(theirs):
        theirs.to_csv(out / "tables" / "published.csv", index=False, na_rep="none")
    frame(runs).to_csv(out / "tables" / "runs.csv", index=False, na_rep="none")
    for name, figure in figures.items():
        save(figure, out / "figures", name)
    return {name: (out / "figures" / f"{name}.svg").read_text() for name in figures}


def file_name(name: str) -> str:
    """A language's name as part of a path: run folders of other people give it, and must not choose the folder."""
    return re.sub(r"[/\\\0]", "_", name)
