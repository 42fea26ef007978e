"""What is known of a language whose runs have not finished: its rules, chance, stop at once and the optimal loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.grammars import LANGUAGES, get_grammar
from rule_extrapolation.reporting.comparison import Group


def with_references(group: Group) -> Group | None:
    """A group with one run whose results hold the references alone, computed from the configuration of its first run.

    Completions have the length that decoding allows. A limit of the model's context is left out, which matters to
    chance only if words are short.

    Returns:
        None if the configuration is missing or names no language that is installed.
    """
    for run in group.excluded:
        if (results := references(run.config)) is not None:
            return replace(group, runs=[replace(run, results=results)], excluded=[])
    return None


def references(config: dict[str, Any]) -> dict[str, Any] | None:
    """The entries of results.json that follow from a configuration without training."""
    options = dict(config.get("grammar") or {})
    name, decoding = options.pop("name", None), config.get("decoding") or {}
    options.pop("_target_", None)
    if name not in LANGUAGES or "max_new_tokens" not in decoding:
        return None
    # They need torch, which no report of finished runs does.
    from rule_extrapolation.grammars.chance import chance_levels
    from rule_extrapolation.grammars.judging import stop_at_once

    try:
        grammar = get_grammar(name, config["data"]["max_length"], **options)
    except (ConfigError, KeyError):
        return None
    most, most_in_total = decoding["max_new_tokens"], decoding.get("max_tokens")

    def budget(prompts: Any) -> int:
        return most if most_in_total is None else min(most, max(most_in_total - prompts.shape[1], 1))

    return {
        "rules": grammar.rules,
        "chance_levels": chance_levels(grammar, budget),
        "stop_at_once": stop_at_once(grammar),
        "optimal_loss": grammar.optimal_loss,
    }
