from rule_extrapolation.grammars.dyck import OneKind


class Brackets(OneKind):
    """Matched square brackets (Dyck-1).

    >>> grammar = Brackets(max_length=8)
    >>> grammar.judge(grammar.encode(["[[]]", "[][]", "]["]))["grammatical"].tolist()
    [True, True, False]
    """

    name = "brackets"
    alphabet = "[]"
    id_start = "[]"
    ood_start = "]["
