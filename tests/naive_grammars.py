"""A naive implementation of the languages on Python strings, the reference for the vectorised grammars.

Nothing here shares code or formulas with the package. Rules are regular expressions, counts and cancelled pairs. A
string is a prefix if some completion makes it a word. Samplers draw words symbol by symbol.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import permutations
from random import Random

import numpy as np

CLOSE = {"(": ")", "[": "]"}


@dataclass(frozen=True)
class NaiveLanguage:
    """A language by its definition.

    Args:
        alphabet: its symbols, in the order of their tokens.
        rules: the language is the intersection of these.
        sample: draws a training word, given max_length, a random generator and the language's options.
        completions: candidate completions of a string. One of them makes a prefix of a word a word.
        extra_constraint: a further condition on words.
    """

    alphabet: str
    rules: dict[str, Callable[[str], bool]]
    sample: Callable[..., str]
    completions: Callable[[str], Iterable[str]]
    extra_constraint: Callable[[str], bool] = lambda s: True

    def judge(self, s: str) -> dict[str, bool]:
        verdicts = {name: rule(s) for name, rule in self.rules.items()}
        return {**verdicts, "grammatical": all(verdicts.values()) and self.extra_constraint(s)}

    def grammatical(self, s: str) -> bool:
        return self.judge(s)["grammatical"]

    def is_prefix(self, s: str) -> bool:
        return any(self.grammatical(s + completion) for completion in self.completions(s))


# Rules


def fits(pattern: str) -> Callable[[str], bool]:
    return lambda s: re.fullmatch(pattern, s) is not None


def same_counts(symbols: str) -> Callable[[str], bool]:
    return lambda s: len({s.count(symbol) for symbol in symbols}) == 1


def cancel(s: str) -> str:
    """Remove adjacent pairs of brackets until there are none. Nothing remains of a properly nested word."""
    while (shorter := s.replace("()", "").replace("[]", "")) != s:
        s = shorter
    return s


def matched(pair: str) -> Callable[[str], bool]:
    return lambda s: not cancel("".join(symbol for symbol in s if symbol in pair))


def b_block_in_the_middle(s: str) -> bool:
    if "b" not in s:
        return True
    block = re.fullmatch("(a*)b+(a*)", s)
    return block is not None and len(block[1]) == len(block[2])


# Completions


def close_nested(s: str) -> list[str]:
    # Only opening brackets remain of a prefix. Other strings have no completion, so any candidate is right.
    return ["".join(CLOSE.get(symbol, "") for symbol in reversed(cancel(s)))]


def close_counted(s: str) -> list[str]:
    return ["".join(CLOSE[symbol] * (s.count(symbol) - s.count(CLOSE[symbol])) for symbol in CLOSE)]


def match_as(letters: str) -> Callable[[str], list[str]]:
    return lambda s: ["".join(letter * (s.count("a") - s.count(letter)) for letter in letters)]


def match_leading_as(s: str) -> list[str]:
    n = len(s) - len(s.lstrip("a"))
    return ["b" * (n - s.count("b")) + "a" * (2 * n - s.count("a"))]


# Samplers


def sample_ban(max_length: int, rng: Random) -> str:
    length = rng.randint(1, max_length)
    num_as = 2 * rng.randint(0, (length - 1) // 2)
    rest = ["a"] * num_as + ["b"] * (length - 1 - num_as)
    rng.shuffle(rest)
    return "b" + "".join(rest)


def sample_bban(max_length: int, rng: Random) -> str:
    length = rng.randint(1, max_length)
    num_as = 2 * rng.randint(0, (length - 1) // 2)
    return "b" * (length - num_as) + "a" * num_as


def sample_anbn(max_length: int, rng: Random, only_even: bool = False, only_odd: bool = False) -> str:
    allowed = [n for n in range(1, max_length // 2 + 1) if not ((only_even and n % 2) or (only_odd and n % 2 == 0))]
    n = rng.choice(allowed)
    return "a" * n + "b" * n


def sample_anbncn(max_length: int, rng: Random) -> str:
    n = rng.randint(1, max_length // 3)
    return "a" * n + "b" * n + "c" * n


def sample_abn(max_length: int, rng: Random) -> str:
    n = rng.randint(1, max_length // 2)
    letters = ["a"] * n + ["b"] * n
    rng.shuffle(letters)
    return "".join(letters)


def sample_anbm(max_length: int, rng: Random) -> str:
    n = rng.randint(1, max_length - 3)
    return "a" * n + "b" * (max_length - 2 - n)


def sample_anbnan(max_length: int, rng: Random) -> str:
    n = rng.randint(1, max_length // 3)
    return "a" * n + "b" * n + "a" * n


def sample_nested(max_length: int, rng: Random, openings: str = "([") -> str:
    target = 2 * rng.randint(1, max_length // 2)
    word: list[str] = []
    stack: list[str] = []
    while stack or not word:
        choices = list(openings) if len(word) + len(stack) < target else []
        if stack:
            choices.append(CLOSE[stack[-1]])
        symbol = rng.choice(choices)
        word.append(symbol)
        if symbol in CLOSE:
            stack.append(symbol)
        else:
            stack.pop()
    return "".join(word)


def sample_shuffled(max_length: int, rng: Random) -> str:
    target = 2 * rng.randint(1, max_length // 2)
    word: list[str] = []
    num_open = {"(": 0, "[": 0}
    while len(word) < target:
        choices = list(CLOSE) if len(word) + sum(num_open.values()) < target else []
        choices += [CLOSE[opening] for opening in CLOSE if num_open[opening]]
        symbol = rng.choice(choices)
        word.append(symbol)
        if symbol in CLOSE:
            num_open[symbol] += 1
        else:
            num_open["(" if symbol == ")" else "["] -= 1
    return "".join(word)


# Sequences and their answers


def answered(inputs: str, answer: Callable[[str], str | None], draw: Callable[[int, Random], str]) -> NaiveLanguage:
    """A language of sequences with their answers.

    Args:
        answer: the answer to a sequence of one or more inputs, or None.
        draw: makes a sequence for a word of at most that many symbols.
    """

    def rule_1(s: str) -> bool:
        s = s.replace("=", "")
        return len(s) > 1 and s[-1] in inputs and answer(s[:-1]) == s[-1]

    def completions(s: str) -> list[str]:
        # A sequence may have no answer before it has one input more.
        return ["", *inputs, *(more + "=" + last for more in ("", inputs[0]) for last in inputs)]

    def sample(max_length: int, rng: Random) -> str:
        sequence = draw(max_length - 2, rng)
        return f"{sequence}={answer(sequence)}"

    names = f"[{re.escape(inputs)}]"
    return NaiveLanguage(inputs + "=", {"rule_1": rule_1, "rule_2": fits(f"{names}+={names}")}, sample, completions)


def any_inputs(inputs: str, step: int = 1) -> Callable[[int, Random], str]:
    return lambda longest, rng: "".join(rng.choices(inputs, k=rng.choice(range(1, longest + 1, step))))


def majority(s: str) -> str | None:
    return None if s.count("a") == s.count("b") else max("ab", key=s.count)


def value(s: str) -> str | None:
    return str(eval(s) % 5) if re.fullmatch(r"[0-4]([+*-][0-4])*", s) else None


def expression(longest: int, rng: Random) -> str:
    symbols = any_inputs("01234", 2)(longest, rng)
    return "".join(rng.choice("+-*") if i % 2 else symbol for i, symbol in enumerate(symbols))


ALPHABETS = "".join(map(chr, range(97, 123))) + "".join(map(chr, range(65, 91))) + "0123456789"
SYMMETRIC_5 = ALPHABETS + "αβγδεζηθικλμνξοπρστυφχψωΓΔΘΛΞΠΣΦΨΩбвгджзийлптфцчшщыьэюяБГД"


def group(inputs: str, elements: list[tuple[int, ...]]) -> NaiveLanguage:
    """Sequences of permutations and what they make of things in a row, one permutation after another."""
    named = dict(zip(inputs, elements, strict=True))

    def arranged(s: str) -> str:
        place = {thing: thing for thing in range(len(elements[0]))}
        for symbol in s:
            place = {thing: named[symbol][at] for thing, at in place.items()}
        return next(name for name in inputs if named[name] == tuple(place[thing] for thing in sorted(place)))

    return answered(inputs, arranged, any_inputs(inputs))


def rotations(num: int) -> list[tuple[int, ...]]:
    return [tuple((i + by) % num for i in range(num)) for by in range(num)]


def even_permutations() -> list[tuple[int, ...]]:
    return [p for p in permutations(range(5)) if np.linalg.det(np.eye(5)[list(p)]) > 0]


def halves(second: Callable[[str], str]) -> NaiveLanguage:
    def rule_1(s: str) -> bool:
        return len(s) % 2 == 0 and s[len(s) // 2 :] == second(s[: len(s) // 2])

    def sample(max_length: int, rng: Random) -> str:
        first = "a" + any_inputs("ab")(max_length // 2, rng)[1:]
        return first + second(first)

    return NaiveLanguage("ab", {"rule_1": rule_1, "rule_2": fits("a.*")}, sample, lambda s: [second(s), "aa"])


NAIVE = {
    "baN": NaiveLanguage(
        alphabet="ab",
        rules={"rule_1": lambda s: s.count("a") % 2 == 0, "rule_2": lambda s: s.startswith("b")},
        sample=sample_ban,
        completions=lambda s: ["", "a", "b"],
    ),
    "bbaN": NaiveLanguage(
        alphabet="ab",
        rules={"rule_1": lambda s: len(s.split("b")[-1]) % 2 == 0, "rule_2": fits("b+a*")},
        sample=sample_bban,
        completions=lambda s: ["", "a", "b"],
    ),
    "aNbN": NaiveLanguage(
        alphabet="ab",
        rules={"rule_1": same_counts("ab"), "rule_2": fits("a*b*"), "rule_3": lambda s: len(s) % 2 == 0},
        sample=sample_anbn,
        completions=match_as("b"),
    ),
    "aNbNcN": NaiveLanguage(
        alphabet="abc",
        rules={"rule_1": same_counts("abc"), "rule_2": fits("a*b*c*")},
        sample=sample_anbncn,
        completions=match_as("bc"),
    ),
    "parentheses_and_brackets": NaiveLanguage(
        alphabet="()[]",
        rules={"rule_1": matched("[]"), "rule_2": matched("()")},
        sample=sample_nested,
        completions=close_nested,
        extra_constraint=lambda s: not cancel(s),
    ),
    "not_nested_parentheses_and_brackets": NaiveLanguage(
        alphabet="()[]",
        rules={"rule_1": matched("[]"), "rule_2": matched("()")},
        sample=sample_shuffled,
        completions=close_counted,
    ),
    "abN": NaiveLanguage(
        alphabet="ab",
        rules={"rule_1": same_counts("ab")},
        sample=sample_abn,
        completions=lambda s: ["a" * (s.count("b") - s.count("a")) + "b" * (s.count("a") - s.count("b"))],
    ),
    "aNbM": NaiveLanguage(
        alphabet="ab",
        rules={"rule_2": fits("a*b*")},
        sample=sample_anbm,
        completions=lambda s: [""],
    ),
    "aNbNaN": NaiveLanguage(
        alphabet="ab",
        rules={"rule_1": lambda s: s.count("a") == 2 * s.count("b"), "rule_2": b_block_in_the_middle},
        sample=sample_anbnan,
        completions=match_leading_as,
    ),
    "parentheses": NaiveLanguage(
        alphabet="()",
        rules={"rule_1": matched("()")},
        sample=lambda max_length, rng: sample_nested(max_length, rng, "("),
        completions=close_nested,
    ),
    "brackets": NaiveLanguage(
        alphabet="[]",
        rules={"rule_1": matched("[]")},
        sample=lambda max_length, rng: sample_nested(max_length, rng, "["),
        completions=close_nested,
    ),
    "separated_brackets_and_parentheses": NaiveLanguage(
        alphabet="()[]",
        rules={
            "rule_1": lambda s: matched("()")(s) and matched("[]")(s),
            "rule_2": fits(r"[()]*|[\[\]]*"),
        },
        sample=lambda max_length, rng: sample_nested(max_length, rng, rng.choice("([")),
        completions=close_counted,
    ),
    "parity": answered("01", lambda s: str(s.count("1") % 2), any_inputs("01")),
    "S3": group(ALPHABETS[:6], [*permutations(range(3))]),
    "S5": group(SYMMETRIC_5, [*permutations(range(5))]),
    "A5": group(ALPHABETS[:60], even_permutations()),
    "Z60": group(ALPHABETS[:60], rotations(60)),
    "modular_arithmetic": answered("01234+-*", value, expression),
    "majority": answered("ab", majority, any_inputs("ab", 2)),
    "first_symbol": answered("ab", lambda s: s[0], any_inputs("ab")),
    "ww": halves(lambda s: s),
    "wwR": halves(lambda s: s[::-1]),
}
