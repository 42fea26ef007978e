"""Word problems of groups: a sequence of elements and their product.

Barrington (1989) shows that the word problem of a non-solvable group such as A5 or S5 is complete for NC1. Merrill,
Petty and Sabharwal (arXiv 2404.08819) test sequence models on word problems of groups with 60 elements and of S5.
"""

from __future__ import annotations

from itertools import permutations
from string import ascii_letters, digits
from typing import Any, ClassVar

from rule_extrapolation.grammars.answers import AnswerGrammar

SYMBOLS = ascii_letters + digits + "αβγδεζηθικλμνξοπρστυφχψωΓΔΘΛΞΠΣΦΨΩбвгджзийлптфцчшщыьэюяБГД"
"""Names of group elements, in their order. The identity is a."""

Permutation = tuple[int, ...]


class WordProblem(AnswerGrammar):
    """A sequence of elements of a group, then =, then their product.

    A subclass sets ``elements``, the identity first, and defines ``multiply``.
    """

    level = "regular"
    answer_rule = "the last element is the product of those before it"
    elements: ClassVar[list[Any]]

    @staticmethod
    def multiply(first: Any, second: Any) -> Any:
        """The product of two elements."""
        raise NotImplementedError

    @classmethod
    def read(cls, state: str | None, symbol: str) -> str:
        if state is None:
            return symbol
        first, second = (cls.elements[cls.inputs.index(element)] for element in (state, symbol))
        return cls.inputs[cls.elements.index(cls.multiply(first, second))]

    @classmethod
    def answer(cls, state: str | None) -> str | None:
        return state

    @classmethod
    def merge_equivalent(cls, state: tuple[str | None, str | None]) -> Any:
        # In a group, exactly one element is right after any sequence, so that only this counts.
        before, last = state
        identity, other = cls.inputs[:2]
        return state if before is None else (identity, identity if before == last else other)


class Cyclic(WordProblem):
    """Addition modulo the number of elements."""

    @classmethod
    def multiply(cls, first: int, second: int) -> int:
        return (first + second) % len(cls.elements)


class Permutations(WordProblem):
    """Permutations of 0, ..., n - 1, of which the product applies the first one first."""

    @staticmethod
    def multiply(first: Permutation, second: Permutation) -> Permutation:
        return tuple(second[image] for image in first)


def is_even(permutation: Permutation) -> bool:
    """Whether an even number of pairs are out of order."""
    return sum(x > y for i, x in enumerate(permutation) for y in permutation[i + 1 :]) % 2 == 0


class Parity(Cyclic):
    """Bits and their sum modulo 2, the word problem of the group Z2.

    Example: "0110=0" is a word; "01=1=" breaks R2.

    >>> grammar = Parity(max_length=16)
    >>> verdicts = grammar.judge(grammar.encode(["011=0", "0=111"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, False], 'rule_2': [True, False], 'grammatical': [True, False]}
    """

    name = "parity"
    answer_rule = "the last bit is the parity of those before it"
    elements = [0, 1]
    inputs = "01"


class Z60(Cyclic):
    """Sums modulo 60. The group is commutative, unlike A5, which has as many elements.

    >>> grammar = Z60(max_length=16)
    >>> grammar.judge(grammar.encode(["bc=d"]))["grammatical"].tolist()
    [True]
    """

    name = "Z60"
    elements = [*range(60)]
    inputs = SYMBOLS[:60]


class S3(Permutations):
    """Permutations of three, in the order of ``itertools.permutations``: a is the identity and b swaps the last two.

    >>> grammar = S3(max_length=16)
    >>> grammar.judge(grammar.encode(["bb=a"]))["grammatical"].tolist()
    [True]
    """

    name = "S3"
    elements = [*permutations(range(3))]
    inputs = SYMBOLS[:6]


class S5(Permutations):
    """Permutations of five, in the order of ``itertools.permutations``. The group is not solvable.

    >>> grammar = S5(max_length=16)
    >>> grammar.judge(grammar.encode(["bb=a"]))["grammatical"].tolist()
    [True]
    """

    name = "S5"
    elements = [*permutations(range(5))]
    inputs = SYMBOLS


class A5(Permutations):
    """Even permutations of five, in the order of ``itertools.permutations``: the smallest group that is not solvable.

    >>> grammar = A5(max_length=16)
    >>> grammar.judge(grammar.encode(["aba=b"]))["grammatical"].tolist()
    [True]
    """

    name = "A5"
    elements = [permutation for permutation in permutations(range(5)) if is_even(permutation)]
    inputs = SYMBOLS[:60]
