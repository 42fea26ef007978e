from __future__ import annotations

from rule_extrapolation.grammars.answers import AnswerGrammar

MODULUS = 5


class ModularArithmetic(AnswerGrammar):
    """Sums, differences and products of digits modulo 5, without brackets, such as "1+2*3=2".

    Products come before sums. This is "modular arithmetic (simple)" of Delétang et al. (arXiv 2207.02098), with the
    answer as a part of the word.

    R1: the last digit is the value of the expression before it. Every = is ignored.
    R2: one =, before the last symbol.

    Example: "1+2*3=2" is a word; "1=+2*32" breaks R2 but keeps R1.

    >>> grammar = ModularArithmetic(max_length=16)
    >>> verdicts = grammar.judge(grammar.encode(["1+2*3=2", "1=+2*32"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True], 'rule_2': [True, False], 'grammatical': [True, False]}
    """

    name = "modular_arithmetic"
    level = "regular"
    inputs = "01234+-*"
    answer_rule = "the last digit is the value of the expression before it, modulo 5"
    step = 2
    # The sum of the finished terms, the signed product of this term's factors so far, and whether a digit is next.
    start = (0, 1, True)

    @classmethod
    def choices(cls) -> list[str]:
        return ["01234", "+-*"]

    @classmethod
    def read(cls, state: tuple[int, int, bool], symbol: str) -> tuple[int, int, bool] | None:
        total, term, expects_digit = state
        if symbol.isdigit() != expects_digit:
            return None
        if expects_digit:
            return total, term * int(symbol) % MODULUS, False
        if symbol == "*":
            return total, term, True
        return (total + term) % MODULUS, 1 if symbol == "+" else MODULUS - 1, True

    @classmethod
    def answer(cls, state: tuple[int, int, bool]) -> str | None:
        total, term, expects_digit = state
        return None if expects_digit else str((total + term) % MODULUS)
