"""Rules as automata, small enough to compute exactly how probable it is that a random completion keeps a rule.

The grammars' vectorised rules judge completions. An acceptor judges one string, symbol by symbol, and its state
summarises the string: two strings in the same state keep the rule with the same continuations.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

State = Hashable


class Acceptor(NamedTuple):
    """A deterministic automaton for one rule. It may have infinitely many states.

    Args:
        start: the state of the empty string.
        read: maps a state and a symbol to the next state, or to None if no continuation keeps the rule.
        accepts: whether a string in this state keeps the rule.
        merge_equivalent: maps a state to a representative of the states that accept equally many continuations of each
            length. Fewer states make chance levels cheaper.
    """

    start: Any
    read: Callable[[Any, str], Any]
    accepts: Callable[[Any], bool]
    merge_equivalent: Callable[[Any], Any] = lambda state: state

    def after(self, string: str) -> State:
        """The state after a string, or None if no continuation keeps the rule.

        >>> in_order("ab").after("aab"), in_order("ab").after("ba")
        (1, None)
        """
        state = self.start
        for symbol in string:
            if state is None:
                return None
            state = self.read(state, symbol)
        return state

    def keeps(self, string: str) -> bool:
        """Whether a string keeps the rule."""
        state = self.after(string)
        return state is not None and bool(self.accepts(state))


def both(*acceptors: Acceptor) -> Acceptor:
    """The intersection of the acceptors."""

    def read(states: tuple, symbol: str) -> tuple | None:
        after = tuple(acceptor.read(state, symbol) for acceptor, state in zip(acceptors, states))
        return None if None in after else after

    return Acceptor(
        tuple(acceptor.start for acceptor in acceptors),
        read,
        lambda states: all(acceptor.accepts(state) for acceptor, state in zip(acceptors, states)),
    )


def tally(modulo: int | None = None, **change: int | tuple[int, ...]) -> Acceptor:
    """Accepts strings whose counts end at 0.

    Args:
        modulo: if given, counts are taken modulo this number.
        change: what each symbol adds to the count, or to each of several counts. Other symbols add nothing.

    >>> equal = tally(a=1, b=-1)
    >>> equal.accepts(equal.after("abba")), equal.accepts(equal.after("aab"))
    (True, False)
    """
    changes = {symbol: by if isinstance(by, tuple) else (by,) for symbol, by in change.items()}
    zero = (0,) * len(next(iter(changes.values())))

    def read(counts: tuple[int, ...], symbol: str) -> tuple[int, ...]:
        added = tuple(count + by for count, by in zip(counts, changes.get(symbol, zero)))
        return added if modulo is None else tuple(count % modulo for count in added)

    return Acceptor(zero, read, lambda counts: counts == zero)


def in_order(symbols: str, needs_first: bool = False) -> Acceptor:
    """Accepts strings whose symbols occur in the given order.

    Args:
        needs_first: the first of the symbols must occur at least once.
    """

    def read(place: int, symbol: str) -> int | None:
        here = symbols.index(symbol)
        return None if here < place or (place < 0 and here > 0) else here

    # The state is the index of the last symbol, or -1 as long as the first of the symbols is required and has not come.
    return Acceptor(-1 if needs_first else 0, read, lambda place: place >= 0)


def begins_with(first: str) -> Acceptor:
    """Accepts strings whose first symbol is ``first``. The empty string is rejected."""

    def read(begins: bool, symbol: str) -> bool | None:
        return True if begins or symbol == first else None

    return Acceptor(False, read, bool)


def matching(pair: str) -> Acceptor:
    """Accepts strings in which the brackets of a pair, such as "()", match. Other symbols are ignored."""

    def read(depth: int, symbol: str) -> int | None:
        depth += (symbol == pair[0]) - (symbol == pair[1])
        return None if depth < 0 else depth

    return Acceptor(0, read, lambda depth: depth == 0)


def nested(pairs: list[str]) -> Acceptor:
    """Accepts properly nested strings of the given pairs of brackets. The state is the stack of open brackets."""
    opening = {closing: opening for opening, closing in pairs}

    def read(stack: str, symbol: str) -> str | None:
        if symbol not in opening:
            return stack + symbol
        return stack[:-1] if stack.endswith(opening[symbol]) else None

    # Stacks of one depth accept equally many continuations: exactly one closing bracket fits the top of each.
    return Acceptor("", read, lambda stack: not stack, lambda stack: pairs[0][0] * len(stack))
