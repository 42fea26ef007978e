"""OOD R1 of all rows and languages in one table, and what share of completions it is over, as Markdown for a README."""

from __future__ import annotations

from collections.abc import Callable

from rule_extrapolation.reporting.comparison import Cell
from rule_extrapolation.reporting.intervals import share_interval
from rule_extrapolation.reporting.measures import AT_MINIMUM, OOD_EMPTY, OOD_FINISHED, OOD_RULE_1
from rule_extrapolation.reporting.pairs import LEVEL, Pair
from rule_extrapolation.reporting.table_files import without_html
from rule_extrapolation.reporting.tables import LABELS, LanguageTable, Row

REFERENCES = ("stop at once", "chance")


def overview(tables: list[LanguageTable]) -> str:
    """OOD R1, the shares that it is over, and the differences that the paired test supports.

    Each table has a row for each architecture and a column for each language.
    """
    rows = named_alike({table.grammar: ours(table) for table in tables})
    names = list(dict.fromkeys(name for found in rows.values() for name in found))
    ns = sorted({row.n for found in rows.values() for row in found.values() if row.n})
    runs = " to ".join(map(str, dict.fromkeys([ns[0], ns[-1]]))) if ns else "0"
    seeds = f"{runs} run" + "s" * (runs != "1")

    def matrix(cell: Callable[[Row], str], references: bool) -> str:
        lines = [["", *map(title, rows)]]
        lines.append(["---"] * len(lines[0]))
        for name in names:
            lines.append([name, *(cell(found[name]) if name in found else "not run" for found in rows.values())])
        for source in REFERENCES if references else ():
            lines.append([source, *(levels(table, source) for table in tables)])
        return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)

    return without_html(
        f"OOD R1 over finished completions, {AT_MINIMUM.title}: mean over {seeds} with its 95% interval, exact "
        f"binomial over prompts where the runs do not differ.\n\n{matrix(rule_1, True)}\n\n"
        "The share of OOD completions that finish, and of the finished ones that are EOS alone:\n\n"
        f"{matrix(shares, False)}\n\n{supported(tables)}\n"
    )


def supported(tables: list[LanguageTable]) -> str:
    """A line for each language that lists the differences of OOD R1 between architectures that the test supports."""
    lines = [f"Differences of OOD R1 that the paired t test supports (Holm-corrected p < {LEVEL}):", ""]
    for table in tables:
        if table.pairs:
            line = "; ".join(map(in_words, table.pairs.supported)) or "none"
            if same := "; ".join(map(in_words, table.pairs.without_spread)):
                line += f". The same in every seed, so that there is nothing to test: {same}"
            lines.append(f"- {title(table.grammar)}: {line}.")
    return "\n".join(lines) if len(lines) > 2 else "No two architectures were compared."


def in_words(pair: Pair) -> str:
    first, second = (pair.first, pair.second) if pair.difference > 0 else (pair.second, pair.first)
    return f"{first} above {second} by {abs(pair.difference):.2f}"


def title(grammar: str) -> str:
    """Label and name, with spaces for underscores, so that a column can be narrow."""
    return " ".join(filter(None, [LABELS.get(grammar), grammar.replace("_", " ")]))


def ours(table: LanguageTable) -> dict[str, Row]:
    return {row.architecture: row for row in table.rows if row.source == "ours" and row.protocol == AT_MINIMUM.title}


def named_alike(rows: dict[str, dict[str, Row]]) -> dict[str, dict[str, Row]]:
    """Rows by language and name, where those without a finished run have the name of the architecture's other rows.

    Only finished runs have remarks, such as "published mask", in their names.
    """
    names: dict[str, set[str]] = {}
    for row in (row for found in rows.values() for row in found.values() if row.n):
        names.setdefault(row.architecture.partition(" (")[0], set()).add(row.architecture)

    def name(row: Row) -> str:
        others = names.get(row.architecture, set())
        return row.architecture if row.n or len(others) != 1 else next(iter(others))

    return {grammar: {name(row): row for row in found.values()} for grammar, found in rows.items()}


def rule_1(row: Row) -> str:
    cell = row.cells[OOD_RULE_1.key]
    interval = "" if cell.low is None else f" {share_interval(cell.low, cell.high)}"
    fewer = f" ({cell.n} of {row.n})" if cell.mean is not None and cell.n < row.n else ""
    return mean(cell) + interval + fewer


def shares(row: Row) -> str:
    finished, empty = (row.cells[measure.key] for measure in (OOD_FINISHED, OOD_EMPTY))
    return (
        mean(empty)
        if finished.mean is None and finished.missing == empty.missing
        else f"{mean(finished)} / {mean(empty)}"
    )


def levels(table: LanguageTable, source: str) -> str:
    """The reference's OOD R1, or the range of it where it differs between rows."""
    cells = [row.cells[OOD_RULE_1.key] for row in table.rows if row.source == source]
    known = sorted(cell.mean for cell in cells if cell.mean is not None)
    if not known:
        return mean(cells[0]) if cells else "not known"
    return " to ".join(dict.fromkeys([f"{known[0]:.2f}", f"{known[-1]:.2f}"]))


def mean(cell: Cell) -> str:
    return str(cell.missing) if cell.mean is None else f"{cell.mean:.2f}"
