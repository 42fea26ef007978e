from rule_extrapolation.grammars.dyck import OneKind
from rule_extrapolation.grammars.exact.acceptor import matching


class Brackets(OneKind):
    """Matched square brackets (Dyck-1).

    >>> grammar = Brackets(max_length=8)
    >>> grammar.judge(grammar.encode(["[[]]", "[][]", "]["]))["grammatical"].tolist()
    [True, True, False]
    """

    name = "brackets"
    alphabet = "[]"
    acceptors = {"rule_1": matching("[]")}
    id_start = "[]"
    ood_start = "]["
