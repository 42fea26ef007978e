"""One page with the figures, the tables and the completions, that opens from a disk without a network."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rule_extrapolation.reporting.figures import KINDS
from rule_extrapolation.reporting.measures import AT_MINIMUM, MEASURES
from rule_extrapolation.reporting.plotting import WIDTH
from rule_extrapolation.reporting.published import SOURCE
from rule_extrapolation.reporting.runs import RunRecord
from rule_extrapolation.reporting.tables import HEADER, LABELS, Cell, LanguageTable, Row, as_texts, text
from rule_extrapolation.reporting.text_tables import HEADER as TEXT_HEADER
from rule_extrapolation.reporting.text_tables import TextTable

PARTS = Path(__file__).with_name("page")


def render(
    title: str,
    runs: list[RunRecord],
    tables: list[LanguageTable],
    texts: list[TextTable],
    svgs: dict[str, str],
    left_out: dict[str, str],
    most: int,
) -> str:
    """The page as HTML.

    Args:
        svgs: figures as SVG files' texts, by name.
        left_out: why other figures are not there, by name.
        most: how many completions of a prompt set each run has at most.
    """
    # What the templates insert is text, and escaped; the parts of the page itself are marked as HTML.
    environment = Environment(loader=FileSystemLoader(PARTS), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html.jinja").render(
        title=title,
        counts=count_in_words(runs),
        made=datetime.now().strftime("%Y-%m-%d"),
        css=Markup((PARTS / "page.css").read_text()),
        js=Markup((PARTS / "page.js").read_text()),
        figures=[
            {"name": name, "title": KINDS[name].title, "caption": KINDS[name].caption, "svg": inline(svg, name)}
            for name, svg in svgs.items()
        ],
        left_out={KINDS[name].title: reason for name, reason in left_out.items()},
        header=HEADER,
        tables=[table_parts(table) for table in tables],
        text_header=TEXT_HEADER,
        texts=[text_parts(table) for table in texts],
        source=SOURCE,
        protocol=f"{AT_MINIMUM.title}, over all completions",
        measures=[measure.title for measure in MEASURES],
        runs=[run_parts(run) for run in runs],
        not_averaged=sum(run.problem is not None for run in runs),
        most=most,
        data=as_json(runs, tables),
    )


def language_in_words(grammar: str) -> str:
    """Our label and the name."""
    return " ".join(filter(None, [LABELS.get(grammar), grammar]))


def count_in_words(runs: list[RunRecord]) -> str:
    """Such as "21 runs: 19 finished, 2 diverged"."""
    fates = Counter("finished" if run.problem is None else run.problem.partition(":")[0] for run in runs)
    listed = ", ".join(f"{n} {fate}" for fate, n in fates.most_common())
    return f"{len(runs)} run{'s' * (len(runs) != 1)}: {listed}"


def inline(svg: str, name: str) -> Markup:
    """An SVG file as an element of a page: without its prolog, with ids of its own, and of a printed page's width the
    share that it has there, so that letters are of one size in all."""
    svg = svg[svg.index("<svg") :]
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) / (72 * WIDTH)
    svg = svg.replace("<svg", f'<svg style="width: {min(width, 1):.0%}"', 1)
    return Markup(re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg))


def table_parts(table: LanguageTable) -> dict[str, Any]:
    rows = [row_parts(row) for row in table.rows]
    for before, row in zip([None, *rows], rows):
        row["first"] = before is None or before["model"] != row["model"]
    return {
        "grammar": table.grammar,
        "short": language_in_words(table.grammar),
        "title": table.title,
        "rules": table.rules,
        "rows": [row for row in rows if row["source"] in ("ours", "published")],
        "references": [row for row in rows if row["source"] not in ("ours", "published")],
        "notes": table.notes,
    }


def text_parts(table: TextTable) -> dict[str, Any]:
    rows = [{"texts": row.texts(), "numbers": [row.n, *row.means, row.weights]} for row in table.rows]
    of_runs = [row for row, of in zip(rows, table.rows) if of.n is not None]
    references = [row for row, of in zip(rows, table.rows) if of.n is None]
    return {
        "grammar": table.grammar,
        "title": table.title,
        "rows": of_runs,
        "references": references,
        "notes": table.notes,
    }


def row_parts(row: Row) -> dict[str, Any]:
    numbers = [row.n, *(row.cells[measure.key].mean for measure in MEASURES)]
    return {"source": row.source, "model": row.model, "texts": as_texts(row), "numbers": numbers}


def run_parts(run: RunRecord) -> dict[str, Any]:
    cells = []
    for measure in MEASURES:
        value = AT_MINIMUM.value(run.results, measure)
        missing = None if value is not None else AT_MINIMUM.missing(run.results, measure)
        cells.append((text(Cell(value, missing=missing), measure, None), value))
    return {
        "source": run.source,
        "language": language_in_words(run.grammar),
        "model": run.model,
        "seed": "unknown" if run.seed is None else run.seed,
        "problem": run.problem,
        "cells": cells,
        "has_completions": run.completions is not None,
    }


def as_json(runs: list[RunRecord], tables: list[LanguageTable]) -> Markup:
    """What page.js reads."""
    rows = []
    for run in runs:
        about = {"source": run.source, "grammar": run.grammar, "language": language_in_words(run.grammar)}
        rows.append({**about, "model": run.model, "seed": run.seed, "completions": run.completions})
    data = {"runs": rows, "rules": {table.grammar: table.rules for table in tables}}
    # Nothing in it can end the script element.
    return Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
