from rule_extrapolation.grammars.dyck import OneKind
from rule_extrapolation.grammars.exact.acceptor import matching


class Parentheses(OneKind):
    """Matched parentheses (Dyck-1).

    >>> grammar = Parentheses(max_length=8)
    >>> grammar.judge(grammar.encode(["(())", "()()", ")("]))["grammatical"].tolist()
    [True, True, False]
    """

    name = "parentheses"
    alphabet = "()"
    acceptors = {"rule_1": matching("()")}
    id_start = "()"
    ood_start = ")("
