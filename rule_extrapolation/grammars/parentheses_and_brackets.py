from __future__ import annotations

from torch import Tensor

from rule_extrapolation.grammars.dyck import TwoKinds
from rule_extrapolation.grammars.exact import acceptor
from rule_extrapolation.ops.strings import nested


class ParenthesesAndBrackets(TwoKinds):
    """L5: parentheses and brackets, properly nested (Dyck-2).

    The rules look at one kind each; a word must nest besides. Training words close once, at their end: a target
    length 2l, l ~ U{1..max_length//2}, then evenly an opening bracket of either kind or the one that closes the last,
    only closing once the target needs it.

    >>> grammar = ParenthesesAndBrackets(max_length=8)
    >>> grammar.judge(grammar.encode(["([])", "([)]", "(]"]))["grammatical"].tolist()
    [True, False, False]
    """

    name = "parentheses_and_brackets"
    label = "L5"
    level = "context-free"
    acceptors = {**TwoKinds.acceptors, "grammatical": acceptor.nested(["()", "[]"])}

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        proper, _ = nested(symbols)
        return proper

    def extra_constraint(self, symbols: Tensor) -> Tensor:
        proper, num_open = nested(symbols)
        return proper & (num_open == 0)
