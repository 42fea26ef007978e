"""metrics.csv: every logged value, kept through interruptions of a run."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from rule_extrapolation.core.files import writing
from rule_extrapolation.runs.run_folder import replace_text


class Writer(ExperimentWriter):
    """Lightning's writer, but it appends to the rows of an existing file, and they are on the disk at any time."""

    def __init__(self, log_dir: str):
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        self.metrics_keys, rows = read(path) if path.is_file() else ([], [])
        self.rows = len(rows)

    def save(self) -> None:
        self.rows += len(self.metrics)
        try:
            with writing(self.metrics_file_path):
                super().save()
        finally:
            self.metrics = []  # after an error, Lightning would write them again as it ends

    def _check_log_dir_exists(self) -> None:
        """Do nothing; Lightning would delete the existing file."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        replace(path, fieldnames, read(path)[1])


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger with the ``Writer`` above, and with metrics.csv directly in ``folder``."""

    def __init__(self, folder: str):
        super().__init__(folder, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> Writer:
        if self._experiment is None:
            self._experiment = Writer(self.log_dir)
        return self._experiment


def truncate(path: Path, rows: int | None) -> None:
    """Keep the first ``rows`` rows of a metrics.csv, or, if None, all rows that are not of the test."""
    if not path.is_file():
        return
    header, all_rows = read(path)
    if rows is None:
        kept = [row for row in all_rows if not any(row[key] for key in header if key.startswith("Test/"))]
    else:
        kept = all_rows[:rows]
    replace(path, header, kept)


def read(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The header and the rows, without a last row that is incomplete because the process was killed."""
    lines = path.read_text().splitlines(keepends=True)
    reader = csv.DictReader(line for line in lines if line.endswith("\n"))
    return list(reader.fieldnames or ()), list(reader)


def replace(path: Path, header: list[str], rows: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header)
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())
