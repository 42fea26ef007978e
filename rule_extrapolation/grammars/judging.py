"""Which rules completions keep, one by one and on average."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rule_extrapolation.grammars.grammar import EOS, Grammar


def judge_completions(grammar: Grammar, completions: Tensor, prompt_length: int) -> dict[str, Tensor]:
    """What holds for each completion.

    Args:
        completions: (N, P + new), prompt and what the model added.
        prompt_length: P, in tokens, SOS included.

    Returns:
        (N,) bool for ``finished`` (EOS appeared), each rule and ``grammatical``, on prompt and completion together,
        and ``rule_2_completion``, on what stands behind the prompt (or behind ``grammar.prompt_prefix`` symbols of it).
    """
    verdicts = {"finished": (completions[:, prompt_length:] == EOS).any(1), **grammar.judge(completions[:, 1:])}
    if "rule_2" in grammar.rules:
        start = prompt_length
        if grammar.prompt_prefix is not None:
            start = min(start, 1 + grammar.prompt_prefix)
        verdicts["rule_2_completion"] = grammar.judge(completions[:, start:])["rule_2"]
    return verdicts


def metric_names(grammar: Grammar) -> list[str]:
    """The metrics of a prompt set, without ``_accuracy``."""
    return list(judge_completions(grammar, grammar.prompts["SOS"], 1))


def accuracies(verdicts: dict[str, Tensor], prefix: str) -> dict[str, float]:
    """``{prefix}/<metric>`` over all completions and ``{prefix}/finished/<metric>`` over the finished ones.

    What has nothing to average over is absent.
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
    """A row for each completion: its prompt set, prompt and completion as text, and what holds for it."""
    rows = []
    for name, tokens in completions.items():
        rows += [{"prompt_set": name, **row} for row in judged(grammar, tokens, grammar.prompts[name].shape[1])]
    return rows


def judged(grammar: Grammar, completions: Tensor, prompt_length: int) -> list[dict[str, Any]]:
    """(N, P + new) completions of prompts of P tokens, SOS included -> a row for each, without its prompt set."""
    columns = {
        "prompt": grammar.to_text(completions[:, 1:prompt_length]),
        "completion": grammar.to_text(completions[:, prompt_length:]),
        **{name: holds.tolist() for name, holds in judge_completions(grammar, completions, prompt_length).items()},
    }
    return [dict(zip(columns, values)) for values in zip(*columns.values())]
