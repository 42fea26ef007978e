from __future__ import annotations

from torch import Tensor

from rule_extrapolation.grammars.dyck import TwoKinds, never_below_zero


class NotNestedParenthesesAndBrackets(TwoKinds):
    """L6: parentheses and brackets, each matched, not necessarily nested (shuffled Dyck).

    Training words: as many symbols as their target 2l, l ~ U{1..max_length//2}; at each position evenly an opening
    bracket of either kind or a closing one of each kind that is open, only closing once the target needs it.

    >>> grammar = NotNestedParenthesesAndBrackets(max_length=8)
    >>> grammar.judge(grammar.encode(["([])", "([)]", "(]"]))["grammatical"].tolist()
    [True, True, False]
    """

    name = "not_nested_parentheses_and_brackets"
    label = "L6"
    level = "context-sensitive"
    nest = False

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        return never_below_zero(symbols, 0) & never_below_zero(symbols, 1)
