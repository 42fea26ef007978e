"""How rules and metrics are called in tables and figures."""

from __future__ import annotations

import re


def title(name: str) -> str:
    """The title of a rule or metric, without ``_accuracy``. The paper's rules are R1, R2 and R3.

    >>> [title(name) for name in ("rule_1", "rule_2_completion", "even_length", "even_length_repaired")]
    ['R1', 'R2 completion', 'even length', 'even length repaired']
    """
    return re.sub(r"^rule_(?=\d)", "R", name).replace("_", " ")


def rules_in_words(rules: dict[str, str]) -> str:
    """The rules in a line.

    >>> rules_in_words({"rule_1": "#a = #b", "nested": "brackets nest"})
    'R1: #a = #b   nested: brackets nest'
    """
    return "   ".join(f"{title(rule)}: {text}" for rule, text in rules.items())
