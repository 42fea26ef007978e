"""Write tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"} | {"<": r"$<$", ">": r"$>$"}


def as_markdown(
    title: str,
    header: list[str],
    rows: list[list[str]],
    remark: str,
    notes: list[str],
    word_columns: int = 1,
    subtitle: str = "",
) -> str:
    """A section with a table, a remark below it and a list of notes.

    Args:
        word_columns: how many columns, from the left, hold words; the others hold numbers and are aligned to the right.
        subtitle: a line above the table.
    """
    lines = [f"## {title}", ""]
    lines += [subtitle, ""] if subtitle else []
    lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * word_columns]
    lines[-1] += " ---: |" * (len(header) - word_columns)
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines += ["", remark, "", *(f"- {note}" for note in notes)]
    return without_html("\n".join(lines)) + "\n"


def without_html(markdown: str) -> str:
    """Markdown in which no name or note of a run, which may be of anybody's writing, is HTML."""
    return re.sub(r"<(?=\S)", "&lt;", markdown)


def as_latex(
    label: str,
    caption: str,
    header: list[str],
    blocks: Iterable[Iterable[list[str]]],
    word_columns: int = 1,
    wide: bool = False,
) -> str:
    """A table environment. It needs booktabs, and graphicx where it is ``wide``.

    Args:
        blocks: the rows, with a rule above each block.
        word_columns: how many columns, from the left, hold words.
        wide: scale the table to the width of the text.
    """
    lines = [f"% \\usepackage{{{'booktabs,graphicx' if wide else 'booktabs'}}}", "\\begin{table}", "\\centering"]
    lines += ["\\scriptsize", "\\setlength{\\tabcolsep}{3pt}"] if wide else []
    lines += [f"\\caption{{{escaped(caption)}}}", f"\\label{{tab:{label}}}"]
    lines += ["\\resizebox{\\textwidth}{!}{%"] if wide else []
    lines += [f"\\begin{{tabular}}{{{'l' * word_columns}{'r' * (len(header) - word_columns)}}}", "\\toprule"]
    lines.append(latex_row(header))
    for block in blocks:
        lines += ["\\midrule", *map(latex_row, block)]
    lines += ["\\bottomrule", "\\end{tabular}" + "}" * wide, "\\end{table}"]
    return "\n".join(lines) + "\n"


def latex_row(cells: list[str]) -> str:
    return " & ".join(map(escaped, cells)) + " \\\\"


def escaped(words: str) -> str:
    """Words as LaTeX source."""
    return "".join(LATEX.get(character, character) for character in words)


def as_csv(rows: list[dict[str, Any]]) -> str:
    """A CSV file of at least one row, all with the same keys."""
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
