from __future__ import annotations

from torch import Tensor

from rule_extrapolation.grammars.dyck import TwoKinds
from rule_extrapolation.grammars.exact import acceptor
from rule_extrapolation.ops.strings import nested


class ParenthesesAndBrackets(TwoKinds):
    """L5, Dyck-2: properly nested parentheses and brackets.

    R1: [ and ] match, parentheses ignored.
    R2: ( and ) match, brackets ignored.
    A word must also nest properly, which neither rule asks for.

    Training words: a target length 2l with l ~ U{1..⌊max_length/2⌋}. Each symbol is drawn uniformly from (, [ and the
    one that closes the bracket opened last; once the symbols so far and the open brackets add up to the target,
    brackets only close. A word ends when no bracket is open.

    Example: "([])" is a word; "([)]" keeps both rules but does not nest; ")([]" breaks R2 but keeps R1.

    >>> grammar = ParenthesesAndBrackets(max_length=8)
    >>> verdicts = grammar.judge(grammar.encode(["([])", "([)]", ")([]"]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, True, True], 'rule_2': [True, True, False], 'grammatical': [True, False, False]}
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
