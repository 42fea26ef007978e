"""The HTML page with figures, tables and completions, in one file that needs no network."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rule_extrapolation.grammars import titles
from rule_extrapolation.reporting.figures import KINDS
from rule_extrapolation.reporting.measures import AT_MINIMUM, MEASURES
from rule_extrapolation.reporting.pairs import HEADER as PAIRS_HEADER
from rule_extrapolation.reporting.plotting import WIDTH
from rule_extrapolation.reporting.runs import RunRecord
from rule_extrapolation.reporting.tables import CAPTION, HEADER, LABELS, Cell, LanguageTable, format_cell
from rule_extrapolation.reporting.text_tables import HEADER as TEXT_HEADER
from rule_extrapolation.reporting.text_tables import TextTable

PARTS = Path(__file__).with_name("page")


def render(
    title: str,
    runs: list[RunRecord],
    tables: list[LanguageTable],
    text_tables: list[TextTable],
    svgs: dict[str, str],
    left_out: dict[str, str],
    most: int,
) -> str:
    """Render the page as HTML.

    Args:
        runs: all runs, also those that are not averaged.
        svgs: the figures by name, each as the content of an SVG file.
        left_out: the reasons for figures that were not drawn, by name.
        most: how many completions of each prompt set and run the page holds at most.
    """
    # Jinja escapes all that the template inserts, except what is marked as HTML here.
    environment = Environment(loader=FileSystemLoader(PARTS), autoescape=True, undefined=StrictUndefined)
    environment.filters["title_of"] = titles.title
    return environment.get_template("report.html.jinja").render(
        title=title,
        counts=count_in_words(runs),
        date=datetime.now().strftime("%Y-%m-%d"),
        css=Markup((PARTS / "page.css").read_text()),
        js=Markup((PARTS / "page.js").read_text()),
        figures=[
            {"name": name, "title": KINDS[name].title, "caption": KINDS[name].caption, "svg": inline(svg, name)}
            for name, svg in svgs.items()
        ],
        left_out={KINDS[name].title: reason for name, reason in left_out.items()},
        tables=[
            *(table_parts(table, HEADER, 2, language_in_words(table.grammar), table.rules) for table in tables),
            *(table_parts(table, TEXT_HEADER, 1, table.title, {}) for table in text_tables),
        ],
        comparisons=[comparison_parts(table) for table in tables if table.pairs],
        caption=CAPTION,
        protocol=f"{AT_MINIMUM.title}, over finished completions",
        measures=[measure.title for measure in MEASURES],
        runs=[run_parts(run) for run in runs],
        not_averaged=sum(run.problem is not None for run in runs),
        most=most,
        data=as_json(runs, tables),
    )


def language_in_words(grammar: str) -> str:
    """For example, "L3 aNbN"."""
    return " ".join(filter(None, [LABELS.get(grammar), grammar]))


def count_in_words(runs: list[RunRecord]) -> str:
    """For example, "21 runs: 19 finished, 2 diverged"."""
    statuses = Counter("finished" if run.problem is None else run.problem.partition(":")[0] for run in runs)
    listed = ", ".join(f"{n} {status}" for status, n in statuses.most_common())
    return f"{len(runs)} run{'s' * (len(runs) != 1)}: {listed}"


def inline(svg: str, name: str) -> Markup:
    """Turn an SVG file into an element of the page.

    Its ids get the figure's name in front, since ids are unique on a page. Its width is relative to that of printed
    text, so that all figures have letters of the same size.
    """
    svg = svg[svg.index("<svg") :]
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) / (72 * WIDTH)
    svg = svg.replace("<svg", f'<svg style="width: {min(width, 1):.0%}"', 1)
    return Markup(re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg))


def table_parts(
    table: LanguageTable | TextTable, header: list[str], word_columns: int, short: str, rules: dict[str, str]
) -> dict[str, Any]:
    """What the template shows of a table, with the rows of references apart."""
    rows, references = [], []
    for before, row in zip([None, *table.rows], table.rows):
        parts = {"source": row.source, "strings": row.strings(), "numbers": [None] * word_columns + row.numbers()}
        parts["first"] = before is None or before.model != row.model
        (references if row.n is None else rows).append(parts)
    return {
        "id": table.grammar,
        "short": short,
        "title": table.title,
        "rules": rules,
        "header": header,
        "word_columns": word_columns,
        "rows": rows,
        "references": references,
        "notes": table.notes,
    }


def comparison_parts(table: LanguageTable) -> dict[str, Any]:
    """What the template shows of the pairs of a language."""
    rows = [
        {"source": "ours", "strings": pair.strings(), "numbers": [None, None, *pair.numbers()], "first": False}
        for pair in table.pairs.pairs
    ]
    return {"title": table.title, "header": PAIRS_HEADER, "word_columns": 2, "rows": rows, "remark": table.pairs.remark}


def run_parts(run: RunRecord) -> dict[str, Any]:
    """What the template shows of a run."""
    cells = []
    for measure in MEASURES:
        value = AT_MINIMUM.value(run.results, measure)
        missing = None if value is not None else AT_MINIMUM.missing(run.results, measure)
        cells.append((format_cell(Cell(value, missing=missing), measure, None), value))
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
    """The data that page.js reads."""
    rows = []
    for run in runs:
        about = {"source": run.source, "grammar": run.grammar, "language": language_in_words(run.grammar)}
        rows.append({**about, "model": run.model, "seed": run.seed, "completions": run.completions})
    data = {"runs": rows, "rules": {table.grammar: table.rules for table in tables}}
    # Escaped, so that nothing in the data can end the script element.
    return Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
