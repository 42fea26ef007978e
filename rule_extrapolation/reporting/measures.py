"""The figures of the tables, under both protocols, over finished completions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rule_extrapolation.grammars.titles import title


@dataclass(frozen=True)
class Measure:
    """A column of the tables.

    Args:
        key: its name in published_results.csv.
        prompts, metric: the parts of its name in results.json, ``{Val,Test}/{prompts}[/finished]/{metric}_accuracy``.
            The loss has neither.
    """

    key: str
    title: str
    prompts: str | None = None
    metric: str | None = None

    @property
    def rule(self) -> str | None:
        """The rule that the figure is about, or None if it is not about one."""
        if self.metric in (None, "finished", "empty", "grammatical"):
            return None
        return self.metric.removesuffix("_completion").removesuffix("_repaired")

    def name(self, finished: bool = True) -> str:
        """The name in results.json without Val/ or Test/, such as ``OOD/finished/rule_1_accuracy``.

        The share of finished completions itself is over all completions.
        """
        if self.prompts is None:
            return "loss"
        path = f"{self.prompts}/finished" if finished and self.metric != "finished" else self.prompts
        return f"{path}/{self.metric}_accuracy"


LOSS = Measure("test_loss", "test loss")
OOD_RULE_1 = Measure("ood_rule_1", "OOD R1", "OOD", "rule_1")
OOD_RULE_1_REPAIRED = Measure("ood_rule_1_repaired", "OOD R1 repaired", "OOD", "rule_1_repaired")
OOD_RULE_2_COMPLETION = Measure("ood_rule_2_completion", "OOD R2 completion", "OOD", "rule_2_completion")
OOD_FINISHED = Measure("ood_finished", "OOD finished", "OOD", "finished")
OOD_EMPTY = Measure("ood_empty", "OOD empty", "OOD", "empty")
MEASURES = (
    LOSS,
    Measure("id_rule_1", "ID R1", "ID", "rule_1"),
    Measure("id_rule_2", "ID R2", "ID", "rule_2"),
    OOD_RULE_1,
    OOD_RULE_1_REPAIRED,
    OOD_RULE_2_COMPLETION,
    OOD_FINISHED,
    OOD_EMPTY,
)
OF_FINISHED = (
    "Accuracies are over finished completions. Published means count a run in which nothing finished as 0; ours leave "
    "it out. OOD finished is the share of completions that finish. OOD R1 repaired is over the prompts that break R1 "
    "on their own. OOD empty is the share of finished completions that are EOS alone."
)
"""What the accuracies are over, for captions."""


@dataclass(frozen=True)
class Protocol:
    """Which of a run's figures are reported.

    Args:
        key, title: names in files and in tables.
        meaning: the explanation below the tables.
        section: the section of results.json with the figures.
        prefix: the beginning of their names.
    """

    key: str
    title: str
    meaning: str
    section: str
    prefix: str

    def value(self, results: dict[str, Any], measure: Measure, finished: bool = True) -> float | None:
        """A run's figure, over finished or over all completions; None if it has none."""
        return results.get(self.section, {}).get(f"{self.prefix}/{measure.name(finished)}")

    def missing(self, results: dict[str, Any], measure: Measure) -> str:
        """Why a run does not have the figure, in a few words."""
        figures = results.get(self.section, {})
        if not figures:
            return "no validation" if self.section == "over_training" else "not tested"
        if f"{self.prefix}/{measure.name()}" in figures:
            return "not finite"
        if measure.metric is None:
            return "not logged"
        rule, rules = measure.rule, results.get("rules")
        if rule is not None and rules is not None and rule not in rules:
            return f"no {title(rule)}"
        if f"{self.prefix}/{measure.prompts}/finished_accuracy" not in figures:
            return f"no {measure.prompts} prompts"
        if f"{self.prefix}/{measure.prompts}/{measure.metric}_accuracy" in figures:
            return "none finished"
        if measure is OOD_RULE_1_REPAIRED and f"{self.prefix}/{OOD_EMPTY.name(finished=False)}" in figures:
            return "none to repair"
        return "not logged"


AT_MINIMUM = Protocol(
    "at_minimum_validation_loss",
    "at minimum validation loss",
    "test loss and accuracies of the checkpoint with the lowest validation loss (for the linear model, the loss "
    "without PAD)",
    "test",
    "Test",
)
OVER_TRAINING = Protocol(
    "best_over_training",
    "best over training",
    "as published, the minimum of the validation loss and the maximum of each other figure over all validations",
    "over_training",
    "Val",
)
PROTOCOLS = (AT_MINIMUM, OVER_TRAINING)


def unigram_figures(results: dict[str, Any]) -> tuple[float, float, float]:
    """Test loss, perplexity and bits per character of the unigram model, which knows only the tokens' frequencies."""
    loss, part = results["unigram_loss"], results["text"]["parts"]["test"]
    return loss, math.exp(loss), loss / math.log(2) * part["tokens"] / part["characters"]
