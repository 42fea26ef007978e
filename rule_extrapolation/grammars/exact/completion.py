"""Completions that a rule decides, found on its acceptor."""

from __future__ import annotations

from collections import deque

from rule_extrapolation.grammars.exact.acceptor import Acceptor, State

MAX_STATES = 10_000


def shortest_completion(acceptor: Acceptor, state: State, alphabet: str, kept: bool) -> str | None:
    """What makes a string in that state keep the rule, or break it, with the fewest symbols.

    To keep it, no symbol at all may do; to break it, at least one is added. Among the shortest it is the first in the
    alphabet's order. None if there is none, as far as MAX_STATES states show.

    >>> from rule_extrapolation.grammars.exact.acceptor import tally
    >>> same = tally(a=1, b=-1)
    >>> [shortest_completion(same, same.after("bba"), "ab", kept) for kept in (True, False)]
    ['a', 'b']
    """
    if kept and keeps(acceptor, state):
        return ""
    reached, to_extend = {state}, deque([("", state)])
    while to_extend and len(reached) < MAX_STATES:
        completion, state = to_extend.popleft()
        for symbol in alphabet:
            longer = completion + symbol
            after = None if state is None else acceptor.read(state, symbol)
            if keeps(acceptor, after) == kept:
                return longer
            if after not in reached:
                reached.add(after)
                to_extend.append((longer, after))
    return None


def keeps(acceptor: Acceptor, state: State) -> bool:
    return state is not None and bool(acceptor.accepts(state))
