"""Drawing training words, compared with tests/naive_grammars.py, which draws one word at a time."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import torch

from benchmarks.comparison import Comparison
from benchmarks.rules import BRACKETS, DRAWN, LENGTH, LETTERS, naive
from benchmarks.table import run
from rule_extrapolation.grammars import get_grammar


def comparisons(num: int = 15_000, length: int = LENGTH) -> Iterator[Comparison]:
    generator, rng = torch.Generator().manual_seed(0), Random(0)
    for label in LETTERS + BRACKETS:
        grammar = get_grammar(label, length, **DRAWN.get(label, {}))
        sample = naive(grammar).sample
        yield Comparison(
            name=f"sampling {num:,} words of up to {length} symbols: {label}",
            ours=lambda grammar=grammar: grammar.sample(num, generator),
            peer=lambda sample=sample, grammar=grammar: grammar.encode([sample(length, rng) for _ in range(num)]),
            peer_name="word by word, tests/naive_grammars.py, then tokens",
            at_least=50.0 if label in BRACKETS else 20.0,
        )


if __name__ == "__main__":
    run(comparisons())
