from __future__ import annotations

from torch import Tensor

from rule_extrapolation.grammars.dyck import TwoKinds, never_below_zero


class NotNestedParenthesesAndBrackets(TwoKinds):
    """L6, shuffled Dyck: parentheses and brackets that each match but need not nest.

    R1: [ and ] match, parentheses ignored.
    R2: ( and ) match, brackets ignored.

    Training words: a target length 2l with l ~ U{1..⌊max_length/2⌋}. Each symbol is drawn uniformly from (, [ and the
    closing bracket of each kind that is open; once the symbols so far and the open brackets add up to the target,
    brackets only close. A word always reaches its target length.

    Example: "([)]" is a word; ")([]" breaks R2 but keeps R1.

    >>> grammar = NotNestedParenthesesAndBrackets(max_length=8)
    >>> verdicts = grammar.judge(grammar.encode(["([)]", ")([]"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True], 'rule_2': [True, False], 'grammatical': [True, False]}
    """

    name = "not_nested_parentheses_and_brackets"
    label = "L6"
    level = "context-sensitive"
    nest = False

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return never_below_zero(symbols, 0) & never_below_zero(symbols, 1)
