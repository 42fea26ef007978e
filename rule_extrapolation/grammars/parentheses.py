from rule_extrapolation.grammars.dyck import OneKind


class Parentheses(OneKind):
    """Matched parentheses (Dyck-1).

    >>> grammar = Parentheses(max_length=8)
    >>> grammar.judge(grammar.encode(["(())", "()()", ")("]))["grammatical"].tolist()
    [True, True, False]
    """

    name = "parentheses"
    alphabet = "()"
    id_start = "()"
    ood_start = ")("
