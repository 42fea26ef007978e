"""Judging strings by a language's rules, compared with tests/naive_grammars.py, which judges one string at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from benchmarks.comparison import Comparison
from benchmarks.table import run
from rule_extrapolation.grammars import get_grammar
from rule_extrapolation.grammars.grammar import Grammar

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from naive_grammars import NAIVE, NaiveLanguage

LETTERS, BRACKETS = ("L1", "L2", "L3", "L4"), ("L5", "L6")
DRAWN = {"L3": {"all_sequences": False}, "L4": {"all_sequences": False}}
LENGTH = 256
"""The maximum number of symbols in a word, which has 258 tokens with SOS and EOS."""


def naive(grammar: Grammar) -> NaiveLanguage:
    return NAIVE[grammar.name]


def perturbed_words(grammar: Grammar, num: int) -> list[str]:
    """Words of the language. In every second one, the symbol at a random position is replaced by a random one."""
    words = grammar.to_text(grammar.sample(num, torch.Generator().manual_seed(0))[:, 1:])
    rng = Random(0)
    for i in range(0, num, 2):
        at = rng.randrange(len(words[i]))
        words[i] = words[i][:at] + rng.choice(grammar.alphabet) + words[i][at + 1 :]
    return words


def comparisons(num: int = 15_000, length: int = LENGTH) -> Iterator[Comparison]:
    for label in LETTERS + BRACKETS:
        grammar = get_grammar(label, length, **DRAWN.get(label, {}))
        strings = perturbed_words(grammar, num)
        tokens = torch.nn.functional.pad(grammar.encode(strings), (0, length + 2), value=2)[:, : length + 2]

        def one_by_one(grammar: Grammar = grammar, tokens: Tensor = tokens) -> list[dict[str, bool]]:
            return [naive(grammar).judge(s) for s in grammar.to_text(tokens)]

        ours, theirs = grammar.judge(tokens), one_by_one()
        assert all(ours[rule].tolist() == [verdict[rule] for verdict in theirs] for rule in ours)
        yield Comparison(
            name=f"rules on {num:,} strings of {length + 2} tokens: {label}",
            ours=lambda grammar=grammar, tokens=tokens: grammar.judge(tokens),
            peer=one_by_one,
            peer_name="as text, string by string, tests/naive_grammars.py",
            at_least=300.0 if label in BRACKETS else 50.0,
        )


if __name__ == "__main__":
    run(comparisons())
