from __future__ import annotations

from rule_extrapolation.grammars.answers import AnswerGrammar


class FirstSymbol(AnswerGrammar):
    """Letters, and the first of them again, such as "abbb=a".

    Recognising an agreement with the first symbol over any distance is the task FIRST of Chiang and Cholak (arXiv
    2202.12172).

    R1: the last letter equals the first. Every = is ignored.
    R2: one =, before the last symbol.

    Example: "abb=a" is a word; "a=bba" breaks R2 but keeps R1.

    >>> grammar = FirstSymbol(max_length=16)
    >>> verdicts = grammar.judge(grammar.encode(["abb=a", "a=bba"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True], 'rule_2': [True, False], 'grammatical': [True, False]}
    """

    name = "first_symbol"
    level = "regular"
    inputs = "ab"
    answer_rule = "the last letter equals the first"

    @classmethod
    def read(cls, state: str | None, symbol: str) -> str:
        return state or symbol

    @classmethod
    def answer(cls, state: str | None) -> str | None:
        return state
