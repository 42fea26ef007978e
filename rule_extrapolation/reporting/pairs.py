"""Every pair of architectures on a language: the difference of their OOD R1, and a paired t test of it over seeds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from rule_extrapolation.reporting.comparison import Group
from rule_extrapolation.reporting.intervals import MIN_SEEDS, ROUNDING, Interval, holm, paired_t_test
from rule_extrapolation.reporting.measures import AT_MINIMUM, OOD_RULE_1
from rule_extrapolation.reporting.table_files import as_latex, as_markdown

HEADER = ["architecture", "compared with", "seeds", "difference of OOD R1", "95% interval", "p"]
LEVEL = 0.05
TOO_FEW_SEEDS, EQUAL, NO_SPREAD = "too few seeds", "equal in every seed", "no spread"


@dataclass(frozen=True)
class Pair:
    """Two rows of a language's table, compared over the seeds that both have."""

    first: str
    second: str
    seeds: int
    difference: float | None = None
    """The mean of the first's OOD R1 minus the second's, None without a common seed."""
    interval: Interval = (None, None)
    p: float | None = None
    """Holm-corrected within the language, None if there is no test."""
    untested: str | None = None
    """Why there is no test."""

    def strings(self) -> list[str]:
        """The cells in the order of HEADER."""
        low, high = self.interval
        return [
            self.first,
            self.second,
            str(self.seeds),
            "-" if self.difference is None else f"{self.difference:+.3f}",
            "-" if low is None else f"[{low:+.2f}, {high:+.2f}]",
            str(self.untested) if self.p is None else "< 0.001" if self.p < 0.001 else f"{self.p:.3f}",
        ]

    def numbers(self) -> list[float | None]:
        """The numbers in ``strings``, without the two columns of words."""
        return [self.seeds, self.difference, self.interval[0], self.p]


@dataclass
class PairTable:
    """The pairs of a language."""

    grammar: str
    title: str
    pairs: list[Pair]

    @property
    def supported(self) -> list[Pair]:
        """The pairs whose difference the test supports at LEVEL."""
        return [pair for pair in self.pairs if pair.p is not None and pair.p < LEVEL]

    @property
    def without_spread(self) -> list[Pair]:
        """The pairs with the same difference, other than 0, in every seed."""
        return [pair for pair in self.pairs if pair.untested == NO_SPREAD]

    @property
    def remark(self) -> str:
        tested = sum(pair.p is not None for pair in self.pairs)
        words = (
            f"Difference of the mean OOD R1 over finished completions, {AT_MINIMUM.title}, over the seeds that both "
            f"have, with its 95% interval and p of a paired t test, Holm-corrected for the number of pairs tested: "
            f"{tested} of {len(self.pairs)}."
        )
        reasons = {pair.untested for pair in self.pairs}
        if TOO_FEW_SEEDS in reasons:
            words += f" Too few seeds: fewer than {MIN_SEEDS}."
        if NO_SPREAD in reasons:
            words += " No spread: the difference is the same in every seed, which a t test cannot judge."
        return words


def pair_table(groups: list[Group], title: str) -> PairTable | None:
    """The pairs of a language's rows, without baselines; None if there are fewer than two rows or no OOD R1."""
    values = {group.title: by_seed(group) for group in groups if group.runs and not group.baseline}
    known = {name: found for name, found in values.items() if found}
    if len(known) < 2:
        return None
    pairs = [compare(*names, *(known[name] for name in names)) for names in combinations(known, 2)]
    corrected = iter(holm([pair.p for pair in pairs if pair.p is not None]))
    pairs = [pair if pair.p is None else replace(pair, p=next(corrected)) for pair in pairs]
    return PairTable(groups[0].grammar, title, pairs)


def by_seed(group: Group) -> dict[int | None, float]:
    """The group's OOD R1 by seed, averaged where several configurations have one seed (mix=true)."""
    values: dict[int | None, list[float]] = {}
    for run in group.runs:
        value = AT_MINIMUM.value(run.results, OOD_RULE_1)
        if value is not None:
            values.setdefault(run.seed, []).append(value)
    return {seed: statistics.fmean(found) for seed, found in values.items()}


def compare(first: str, second: str, ours: dict[Any, float], theirs: dict[Any, float]) -> Pair:
    """Compare two rows by the values of their common seeds. The p is not yet corrected."""
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    pair = Pair(first, second, len(differences))
    if not differences:
        return replace(pair, untested=TOO_FEW_SEEDS)
    pair = replace(pair, difference=statistics.fmean(differences))
    if len(differences) < MIN_SEEDS:
        return replace(pair, untested=TOO_FEW_SEEDS)
    if max(differences) - min(differences) < ROUNDING:
        return replace(pair, untested=EQUAL if abs(differences[0]) < ROUNDING else NO_SPREAD)
    p, (low, high) = paired_t_test(differences)
    return replace(pair, p=p, interval=(max(low, -1.0), min(high, 1.0)))


def markdown(table: PairTable) -> str:
    rows = [pair.strings() for pair in table.pairs]
    return as_markdown(f"{table.title}: pairs of architectures", HEADER, rows, table.remark, [], word_columns=2)


def latex(table: PairTable) -> str:
    blocks = [[pair.strings() for pair in table.pairs]]
    caption = f"{table.title}: pairs of architectures. {table.remark}"
    return as_latex(f"{table.grammar}_pairs", caption, HEADER, blocks, word_columns=2)


def csv_rows(table: PairTable) -> list[dict[str, Any]]:
    tested = sum(pair.p is not None for pair in table.pairs)
    rows = []
    for pair in table.pairs:
        figures = {
            "difference": pair.difference,
            "low": pair.interval[0],
            "high": pair.interval[1],
            "p": pair.p,
        }
        rows.append(
            {
                "grammar": table.grammar,
                "architecture": pair.first,
                "compared_with": pair.second,
                "seeds": pair.seeds,
                **{key: pair.untested if value is None else value for key, value in figures.items()},
                "pairs_tested": tested,
                "pairs": len(table.pairs),
            }
        )
    return rows
