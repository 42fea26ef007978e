"""Judge completions: which rules each one keeps, and the accuracies of a set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rule_extrapolation.core.tokens import EOS
from rule_extrapolation.grammars.grammar import Grammar


def judge_completions(grammar: Grammar, completions: Tensor, prompt_length: int) -> dict[str, Tensor]:
    """Judge each completion.

    Args:
        completions: (N, P + new) tokens: the prompt and the completion.
        prompt_length: P in tokens, SOS included.

    Returns:
        (N,) bool for each of ``finished`` (the completion contains EOS); ``empty`` (it is EOS alone); the rules, which
        judge prompt and completion together; ``grammatical`` (both together are a word, and the completion is
        finished); and ``<rule>_completion`` for each of ``grammar.completion_rules``, which judges only what follows
        the prompt, or what follows its first ``grammar.prompt_prefix`` symbols.
    """
    is_eos = completions[:, prompt_length:] == EOS
    finished = is_eos.any(1)
    verdicts = {"finished": finished, "empty": is_eos[:, :1].any(1), **grammar.judge(completions[:, 1:])}
    verdicts["grammatical"] = verdicts["grammatical"] & finished
    if grammar.completion_rules:
        start = prompt_length
        if grammar.prompt_prefix is not None:
            start = min(start, 1 + grammar.prompt_prefix)
        alone = grammar.judge(completions[:, start:])
        verdicts |= {f"{rule}_completion": alone[rule] for rule in grammar.completion_rules}
    return verdicts


def judge_prompts(grammar: Grammar, completions: Tensor, prompt_length: int) -> dict[str, Tensor]:
    """(N, P + new) tokens -> (N,) bool for each of ``grammar.repairable_rules``: whether the prompt, ended at once,
    keeps the rule."""
    if not grammar.repairable_rules:
        return {}
    alone = grammar.judge(completions[:, 1:prompt_length])
    return {rule: alone[rule] for rule in grammar.repairable_rules}


def metric_names(grammar: Grammar) -> list[str]:
    """The names of a prompt set's metrics, without ``_accuracy``."""
    verdicts = judge_completions(grammar, grammar.prompts["SOS"], 1)
    return [*verdicts, *(f"{rule}_repaired" for rule in grammar.repairable_rules)]


def accuracies(grammar: Grammar, completions: Tensor, prompt_length: int, prefix: str) -> dict[str, float]:
    """The shares of completions that are finished, empty and so on.

    Args:
        completions: (N, P + new) tokens.
        prompt_length: P in tokens, SOS included.

    Returns:
        ``{prefix}/<verdict>_accuracy`` for each verdict of ``judge_completions``; and
        ``{prefix}/<rule>_repaired_accuracy`` for each of ``grammar.repairable_rules``: the share that keep the rule
        among those whose prompt does not keep it already. All of them again over finished completions, as
        ``{prefix}/finished/...``. Metrics over an empty set are absent.
    """
    verdicts = judge_completions(grammar, completions, prompt_length)
    every = torch.ones(len(completions), dtype=torch.bool, device=completions.device)
    metrics = {name: (verdict, every) for name, verdict in verdicts.items()}
    for rule, kept_already in judge_prompts(grammar, completions, prompt_length).items():
        metrics[f"{rule}_repaired"] = (verdicts[rule], ~kept_already)
    subsets = {prefix: every, f"{prefix}/finished": verdicts["finished"]}
    return {
        f"{path}/{name}_accuracy": verdict[subset & counted].float().mean().item()
        for path, subset in subsets.items()
        for name, (verdict, counted) in metrics.items()
        if (subset & counted).any()
    }


def stop_at_once(grammar: Grammar) -> dict[str, float]:
    """The accuracies of the completion that is EOS alone, for each prompt set, named as by ``accuracies``.

    A rule that many prompts keep already is kept as often by a model that writes nothing.
    """
    levels: dict[str, float] = {}
    for name, prompts in grammar.prompts.items():
        ended = torch.nn.functional.pad(prompts, (0, 1), value=EOS)
        levels |= accuracies(grammar, ended, prompts.shape[1], name)
    return levels


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

    The column ``<rule>_prompt`` is the verdict of ``judge_prompts``.

    Args:
        completions: (N, P + new) tokens.
        prompt_length: P in tokens, SOS included.
    """
    verdicts = judge_completions(grammar, completions, prompt_length)
    verdicts |= {f"{rule}_prompt": kept for rule, kept in judge_prompts(grammar, completions, prompt_length).items()}
    columns = {
        "prompt": grammar.to_text(completions[:, 1:prompt_length]),
        "completion": grammar.to_text(completions[:, prompt_length:]),
        **{name: holds.tolist() for name, holds in verdicts.items()},
    }
    return [dict(zip(columns, values)) for values in zip(*columns.values())]
