"""Judging strings by a language's rules: all at once, beside one after the other as tests/naive_grammars.py does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch

from benchmarks.comparison import Comparison
from benchmarks.table import run
from rule_extrapolation.grammars import get_grammar
from rule_extrapolation.grammars.grammar import Grammar

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from naive_grammars import NAIVE, NaiveLanguage

LETTERS, BRACKETS = ("L1", "L2", "L3", "L4"), ("L5", "L6")
DRAWN = {"L3": {"all_sequences": False}, "L4": {"all_sequences": False}}
LENGTH = 256
"""The most symbols of a word: SOS and EOS make it 258 tokens."""


def naive(grammar: Grammar) -> NaiveLanguage:
    return NAIVE[grammar.name]


def perturbed_words(grammar: Grammar, num: int) -> list[str]:
    """Words of the language; in every second one a symbol has been replaced by another, anywhere."""
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
        judge = naive(grammar).judge
        ours, theirs = grammar.judge(tokens), [judge(s) for s in strings]
        assert all(ours[rule].tolist() == [verdict[rule] for verdict in theirs] for rule in ours)
        yield Comparison(
            name=f"rules on {num:,} strings of {length + 2} tokens: {label}",
            ours=lambda grammar=grammar, tokens=tokens: grammar.judge(tokens),
            peer=lambda judge=judge, strings=strings: [judge(s) for s in strings],
            peer_name="string by string, tests/naive_grammars.py",
            at_least=300.0 if label in BRACKETS else 50.0,
        )


if __name__ == "__main__":
    run(comparisons())
