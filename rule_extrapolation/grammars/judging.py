"""Judge completions: which rules each one keeps, and the accuracies of a set."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rule_extrapolation.core.tokens import EOS
from rule_extrapolation.grammars.grammar import Grammar


def judge_completions(grammar: Grammar, completions: Tensor, prompt_length: int) -> dict[str, Tensor]:
    """Judge each completion.

    Args:
        completions: (N, P + new) tokens: the prompt and the completion.
        prompt_length: P in tokens, SOS included.

    Returns:
        (N,) bool for each of ``finished`` (the completion contains EOS); the rules and ``grammatical``, which judge
        prompt and completion together; and ``rule_2_completion``, which judges only what follows the prompt, or what
        follows its first ``grammar.prompt_prefix`` symbols.
    """
    verdicts = {"finished": (completions[:, prompt_length:] == EOS).any(1), **grammar.judge(completions[:, 1:])}
    if "rule_2" in grammar.rules:
        start = prompt_length
        if grammar.prompt_prefix is not None:
            start = min(start, 1 + grammar.prompt_prefix)
        verdicts["rule_2_completion"] = grammar.judge(completions[:, start:])["rule_2"]
    return verdicts


def metric_names(grammar: Grammar) -> list[str]:
    """The names of a prompt set's metrics, without ``_accuracy``."""
    return list(judge_completions(grammar, grammar.prompts["SOS"], 1))


def accuracies(verdicts: dict[str, Tensor], prefix: str) -> dict[str, float]:
    """Means of ``judge_completions``'s verdicts.

    Returns:
        ``{prefix}/<metric>`` over all completions and ``{prefix}/finished/<metric>`` over the finished ones. Metrics
        over an empty set are absent.
    """
    finished = verdicts["finished"]
    subsets = {prefix: finished | True, f"{prefix}/finished": finished}
    return {
        f"{path}/{name}_accuracy": verdict[subset].float().mean().item()
        for path, subset in subsets.items()
        if subset.any()
        for name, verdict in verdicts.items()
    }


def judged_rows(grammar: Grammar, completions: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The rows of completions.csv: prompt set, prompt, completion and verdicts of each completion.

    Args:
        completions: (N, P + new) tokens for each prompt set.
    """
    rows = []
    for name, tokens in completions.items():
        rows += [{"prompt_set": name, **row} for row in judged(grammar, tokens, grammar.prompts[name].shape[1])]
    return rows


def judged(grammar: Grammar, completions: Tensor, prompt_length: int) -> list[dict[str, Any]]:
    """As ``judged_rows``, for completions of one length of prompt and without the name of the prompt set.

    Args:
        completions: (N, P + new) tokens.
        prompt_length: P in tokens, SOS included.
    """
    columns = {
        "prompt": grammar.to_text(completions[:, 1:prompt_length]),
        "completion": grammar.to_text(completions[:, prompt_length:]),
        **{name: holds.tolist() for name, holds in judge_completions(grammar, completions, prompt_length).items()},
    }
    return [dict(zip(columns, values)) for values in zip(*columns.values())]
