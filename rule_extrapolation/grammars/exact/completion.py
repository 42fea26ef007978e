"""The shortest completions that keep or break a rule."""

from __future__ import annotations

from collections import deque

from rule_extrapolation.grammars.exact.acceptor import Acceptor, State

MAX_STATES = 10_000
"""The search ends after this many states."""


def shortest_completion(acceptor: Acceptor, state: State, alphabet: str, kept: bool) -> str | None:
    """The shortest completion that makes a string in this state keep the rule, or break it.

    Of several shortest completions it is the first in the alphabet's order. Only to keep a rule may it be empty.

    Args:
        kept: whether the completed string shall keep the rule or break it.

    Returns:
        The completion, or None if the search finds none.

    >>> from rule_extrapolation.grammars.exact.acceptor import tally
    >>> equal = tally(a=1, b=-1)
    >>> [shortest_completion(equal, equal.after("bba"), "ab", kept) for kept in (True, False)]
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
