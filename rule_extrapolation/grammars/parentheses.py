from rule_extrapolation.grammars.dyck import OneKind
from rule_extrapolation.grammars.exact.acceptor import matching


class Parentheses(OneKind):
    """Dyck-1: matching parentheses.

    R1: ( and ) match.

    Training words: as for L5 (``ParenthesesAndBrackets``), with one kind of bracket.

    Example: "(())" is a word; ")(" is not.

    >>> grammar = Parentheses(max_length=8)
    >>> verdicts = grammar.judge(grammar.encode(["(())", ")("]))
    >>> {rule: kept.tolist() for rule, kept in verdicts.items()}
    {'rule_1': [True, False], 'grammatical': [True, False]}
    """

    name = "parentheses"
    alphabet = "()"
    acceptors = {"rule_1": matching("()")}
    id_start = "()"
    ood_start = ")("
