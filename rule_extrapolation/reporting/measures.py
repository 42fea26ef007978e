"""The figures of the tables: the paper's five and the share of finished completions, under both protocols."""

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

    def name(self, finished: bool = False) -> str:
        """The name in results.json without Val/ or Test/, such as ``OOD/finished/rule_1_accuracy``."""
        if self.prompts is None:
            return "loss"
        path = f"{self.prompts}/finished" if finished and self.metric != "finished" else self.prompts
        return f"{path}/{self.metric}_accuracy"


LOSS = Measure("test_loss", "test loss")
OOD_RULE_1 = Measure("ood_rule_1", "OOD R1", "OOD", "rule_1")
OOD_RULE_2_COMPLETION = Measure("ood_rule_2_completion", "OOD R2 completion", "OOD", "rule_2_completion")
MEASURES = (
    LOSS,
    Measure("id_rule_1", "ID R1", "ID", "rule_1"),
    Measure("id_rule_2", "ID R2", "ID", "rule_2"),
    OOD_RULE_1,
    OOD_RULE_2_COMPLETION,
    Measure("ood_finished", "OOD finished", "OOD", "finished"),
)


@dataclass(frozen=True)
class Protocol:
    """Which of a run's figures are reported.

    Args:
        key, title: names in files and in tables.
        meaning: the explanation below the tables.
        section: the section of results.json with the figures.
        prefix: the beginning of their names.
        finished: whether accuracies are over finished completions only.
    """

    key: str
    title: str
    meaning: str
    section: str
    prefix: str
    finished: bool

    def value(self, results: dict[str, Any], measure: Measure) -> float | None:
        return results.get(self.section, {}).get(f"{self.prefix}/{measure.name(self.finished)}")

    def missing(self, results: dict[str, Any], measure: Measure) -> str:
        """Why a run does not have the figure, in a few words."""
        figures = results.get(self.section, {})
        name = f"{self.prefix}/{measure.name(self.finished)}"
        if not figures:
            return "no validation" if self.section == "over_training" else "not tested"
        if name in figures:
            return "not finite"
        rule, rules = measure.rule, results.get("rules")
        if rule is not None and rules is not None and rule not in rules:
            return f"no {title(rule)}"
        if measure.prompts is not None and f"{self.prefix}/{measure.prompts}/finished_accuracy" not in figures:
            return f"no {measure.prompts} prompts"
        if f"{self.prefix}/{measure.name()}" not in figures:
            return "not logged"
        return "none finished" if self.finished else "not logged"


AT_MINIMUM = Protocol(
    "at_minimum_validation_loss",
    "at minimum validation loss",
    "test loss, and accuracies over all completions, of the checkpoint with the lowest validation loss (for the linear "
    "model, the loss without PAD)",
    "test",
    "Test",
    finished=False,
)
OVER_TRAINING = Protocol(
    "best_over_training",
    "best over training",
    "the minimum of the validation loss and the maximum of each accuracy over all validations, with accuracies over "
    "finished completions only, as published",
    "over_training",
    "Val",
    finished=True,
)
PROTOCOLS = (AT_MINIMUM, OVER_TRAINING)


def unigram_figures(results: dict[str, Any]) -> tuple[float, float, float]:
    """Test loss, perplexity and bits per character of the unigram model, which knows only the tokens' frequencies."""
    loss, part = results["unigram_loss"], results["text"]["parts"]["test"]
    return loss, math.exp(loss), loss / math.log(2) * part["tokens"] / part["characters"]
