"""Group runs into the rows of tables: finished runs of one language, architecture and configuration are averaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rule_extrapolation.core.errors import ConfigError, as_written, one_of
from rule_extrapolation.grammars import LANGUAGES
from rule_extrapolation.reporting.intervals import binomial_interval, statistics_of
from rule_extrapolation.reporting.measures import LOSS, OOD_FINISHED, OOD_RULE_1, OOD_RULE_1_REPAIRED, Measure, Protocol
from rule_extrapolation.reporting.runs import AVERAGED_OVER, UNKNOWN, RunRecord
from rule_extrapolation.runs.identity import QUIRKS

ARCHITECTURES = (
    "transformer",
    "lstm",
    "linear",
    "mamba",
    "xlstm",
    "minlstm",
    "mingru",
    "ffnn",
    "seq2seq",
    "oracle",
    "ngram",
    "normative",
)
ABSENT = "absent"
"""The value of a key that a configuration does not have."""


@dataclass
class Group:
    """The runs of one row."""

    grammar: str
    model: str
    variant: str
    """The settings that tell the row from the model's other rows, such as "optimizer.lr=0.001"; empty if it has one."""
    runs: list[RunRecord] = field(default_factory=list)
    excluded: list[RunRecord] = field(default_factory=list)
    """Runs that are not averaged: unfinished, failed or diverged ones, and those that a later run replaces."""
    configurations: int = 1
    """How many configurations the runs have."""

    @property
    def name(self) -> str:
        return f"{self.model}, {self.variant}" if self.variant else self.model

    @property
    def baseline(self) -> bool:
        """Whether the model is a baseline."""
        return any(run.results.get("baseline") for run in self.runs + self.excluded)

    @property
    def title(self) -> str:
        """The name with the remarks that a table must make on it.

        A row that is named by its quirks has its caveat in a note.
        """
        caveat = None if self.is_named_by_quirks else self.caveat
        remarks = "; ".join(filter(None, ["baseline" if self.baseline else None, caveat]))
        return f"{self.name} ({remarks})" if remarks else self.name

    @property
    def is_named_by_quirks(self) -> bool:
        return f"{QUIRKS}=" in self.variant

    @property
    def caveat(self) -> str | None:
        return "; ".join(dict.fromkeys(run.results["caveat"] for run in self.runs if run.results.get("caveat"))) or None


@dataclass(frozen=True)
class Cell:
    """A figure over n runs, or the reason why it is missing."""

    mean: float | None = None
    std: float | None = None
    """The sample standard deviation, None for one run."""
    n: int = 0
    missing: str | None = None
    low: float | None = None
    high: float | None = None
    """The ends of the 95% interval of the mean, None if it is not known."""


def average(runs: list[RunRecord], protocol: Protocol, measure: Measure) -> Cell:
    """Mean, standard deviation, 95% interval of the mean, and number of the runs that have the figure.

    The interval of several runs is a t interval over them. That of one run, or of runs that do not differ, is an exact
    binomial interval over the different prompts of one of them. If no run has the figure, the cell names the most
    frequent reason.
    """
    known = [(run, value) for run in runs if (value := protocol.value(run.results, measure)) is not None]
    if not known:
        reasons = Counter(protocol.missing(run.results, measure) for run in runs)
        return Cell(missing=reasons.most_common(1)[0][0] if reasons else "no finished run")
    is_share = measure is not LOSS
    mean, std, interval = statistics_of([value for _, value in known], is_share)
    if interval == (None, None) and is_share:
        interval = binomial_interval(mean, number_of_prompts(known[0][0], protocol, measure))
    return Cell(mean, std, len(known), None, *interval)


def number_of_prompts(run: RunRecord, protocol: Protocol, measure: Measure) -> int:
    """How many different prompts a run's figure is over, 0 if it is not known.

    Of the prompts that R1 is to be repaired on, as many are taken to finish as of all prompts.
    """
    number = (run.results.get("prompts") or {}).get(measure.prompts, 0)
    if measure.metric == "finished":
        return number
    finished = protocol.value(run.results, replace(OOD_FINISHED, prompts=measure.prompts)) or 0
    if measure is OOD_RULE_1_REPAIRED:
        # The completion that is EOS alone keeps R1 where the prompt keeps it.
        kept = (run.results.get("stop_at_once") or {}).get(OOD_RULE_1.name(finished=False))
        number *= 0 if kept is None else 1 - kept
    return round(number * finished)


def group_runs(runs: list[RunRecord], by: Iterable[str] = (), mix: bool = False) -> list[Group]:
    """Group runs into rows, with languages and architectures in their usual order.

    Of several runs with the same configuration and seed, only the latest is averaged.

    Args:
        by: keys of the configuration, such as optimizer.lr; each of their values gets a row.
        mix: average over configurations that differ in other keys.

    Raises:
        ConfigError: configurations differ in other keys, or no configuration has a key of ``by``.
    """
    by = list(by)
    known = {key for run in runs for key in run.settings}
    for key in by:
        if key in AVERAGED_OVER:
            raise ConfigError("by", key, "runs that differ in it are averaged; name a setting that distinguishes rows")
        if key not in known:
            raise ConfigError("by", key, f"no run has such a key; {one_of(key, sorted(known))}")
    groups: dict[tuple, Group] = {}

    def position(run: RunRecord) -> tuple:
        values = [run.settings.get(key, ABSENT) for key in by]
        order = [(0, value, "") if isinstance(value, int | float) else (1, 0, str(value)) for value in values]
        return rank(run.grammar, LANGUAGES), rank(run.model, ARCHITECTURES), order

    for run in sorted((run for run in runs if UNKNOWN not in (run.grammar, run.model)), key=position):
        values = [run.settings.get(key, ABSENT) for key in by]
        variant = ", ".join(f"{key}={as_written(value)}" for key, value in zip(by, values) if value is not ABSENT)
        group = groups.setdefault((run.grammar, run.model, variant), Group(run.grammar, run.model, variant))
        (group.excluded if run.problem else group.runs).append(run)
    rows = list(groups.values())
    for group in rows:
        keep_latest(group)
        group.configurations = len({configuration(run) for run in group.runs})
    if not mix:
        check_configurations(rows)
    return rows


def rank(name: str, usual_order: Iterable[str]) -> tuple[int, str]:
    """A key to sort names by: in the usual order, with unknown names after it."""
    order = list(usual_order)
    return (order.index(name) if name in order else len(order), name)


def configuration(run: RunRecord) -> tuple:
    """The settings, without the name of the quirks, which are settings of other keys."""
    return tuple(sorted((key, str(value)) for key, value in run.settings.items() if key != QUIRKS))


def keep_latest(group: Group) -> None:
    """Exclude the runs of a row that a later run with the same configuration and seed replaces."""
    latest: dict[tuple, RunRecord] = {}
    for run in sorted(group.runs, key=lambda run: run.time):
        key = (configuration(run), run.seed)
        if key in latest:
            latest[key].problem = f"replaced by a later run: {run.source} has the same configuration and seed"
            group.excluded.append(latest[key])
        latest[key] = run
    group.runs = [run for run in group.runs if run.problem is None]


def differences(runs: list[RunRecord]) -> dict[str, Counter]:
    """The keys in which the runs' configurations differ, with the number of runs that have each value."""
    settings = [run.settings for run in runs]
    keys = dict.fromkeys(key for each in settings for key in each)
    counts = {key: Counter(str(as_written(each.get(key, ABSENT))) for each in settings) for key in keys}
    return {key: values for key, values in counts.items() if len(values) > 1}


def check_configurations(groups: list[Group]) -> None:
    """Raise a ConfigError, which names keys and values, if a row has runs of several configurations."""
    mixed = [group for group in groups if group.configurations > 1]
    if not mixed:
        return
    listed = "; ".join(f"{key} is {values_in_words(values)}" for key, values in differences(mixed[0].runs).items())
    keys = distinguishing_keys(mixed)
    others = f" (and so have those of {', '.join(first_names(mixed[1:]))})" if len(mixed) > 1 else ""
    raise ConfigError(
        "runs",
        f"{mixed[0].name} on {mixed[0].grammar}",
        f"its runs have different configurations{others}: {listed}; by={','.join(keys)} makes rows of them, "
        "mix=true averages over them",
    )


def distinguishing_keys(mixed: list[Group]) -> list[str]:
    """The keys that make rows of one configuration each: quirks alone if that is enough, or all that differ."""
    by_quirks: dict[tuple, set[tuple]] = {}
    for i, group in enumerate(mixed):
        for run in group.runs:
            by_quirks.setdefault((i, run.settings.get(QUIRKS, ABSENT)), set()).add(configuration(run))
    if all(len(configurations) == 1 for configurations in by_quirks.values()):
        return [QUIRKS]
    return list(dict.fromkeys(key for group in mixed for key in differences(group.runs)))


def first_names(groups: list[Group]) -> list[str]:
    """The names of the first three rows, and how many more there are."""
    first = [f"{group.name} on {group.grammar}" for group in groups[:3]]
    return first if len(groups) <= 3 else [*first, f"{len(groups) - 3} more"]


def values_in_words(values: Counter) -> str:
    return " or ".join(f"{value} ({n} run{'s' * (n > 1)})" for value, n in values.items())


def differing_settings(groups: list[Group]) -> dict[str, dict[str, list[str]]]:
    """The settings besides the model's in which the rows of a language differ: {key: {value: names of rows}}.

    Only rows that have a key are compared, since each optimizer and scheduler has its own settings. Baselines are not
    trained, so that settings of training do not apply to them.
    """
    seen: dict[str, dict[str, list[str]]] = {}
    for group in groups:
        for run in group.runs[:1]:
            for key, value in run.settings.items():
                unused = run.results.get("baseline") and key.startswith(("trainer.", "optimizer.", "scheduler."))
                if key.partition(".")[0] not in ("model", "grammar") and not unused:
                    seen.setdefault(key, {}).setdefault(str(as_written(value)), []).append(group.name)
    return {key: values for key, values in seen.items() if len(values) > 1}
