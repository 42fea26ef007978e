from __future__ import annotations

from rule_extrapolation.grammars.answers import AnswerGrammar


class Majority(AnswerGrammar):
    """Letters, and the one that occurs more often, such as "abbab=b".

    It takes a counter (see Merrill, arXiv 1906.01615). A sequence with as many a's as b's has no answer, so training
    words have an odd number of inputs.

    R1: the last letter is the more frequent one of those before it. Every = is ignored.
    R2: one =, before the last symbol.

    Example: "abb=b" is a word; "a=bbb" breaks R2 but keeps R1.

    >>> grammar = Majority(max_length=16)
    >>> verdicts = grammar.judge(grammar.encode(["abb=b", "a=bbb"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True], 'rule_2': [True, False], 'grammatical': [True, False]}
    """

    name = "majority"
    level = "context-free"
    inputs = "ab"
    answer_rule = "the last letter is the majority of those before it"
    step = 2
    start = 0  # #a - #b
    is_finite = False

    @classmethod
    def read(cls, state: int, symbol: str) -> int:
        return state + (1 if symbol == "a" else -1)

    @classmethod
    def answer(cls, state: int) -> str | None:
        return None if state == 0 else "a" if state > 0 else "b"
