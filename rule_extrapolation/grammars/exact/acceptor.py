"""Rules as machines that read a word symbol by symbol, small enough that the chance of keeping one can be computed.

The vectorised rules of the grammars judge completions; these say the same of a single string (a test holds the two
together), and what of it still matters: strings in the same state keep the rule with the same continuations.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

State = Hashable


class Acceptor(NamedTuple):
    """
    Args:
        start: the state of the empty string.
        read: the state behind one more symbol, or None if no continuation keeps the rule.
        accepts: whether a string in that state keeps the rule.
        lump: to one state among those that accept as many of the continuations of each length.
    """

    start: Any
    read: Callable[[Any, str], Any]
    accepts: Callable[[Any], bool]
    merge_equivalent: Callable[[Any], Any] = lambda state: state

    def after(self, string: str) -> State:
        """The state behind a string, or None.

        >>> in_order("ab").after("aab"), in_order("ab").after("ba")
        (1, None)
        """
        state = self.start
        for symbol in string:
            if state is None:
                return None
            state = self.read(state, symbol)
        return state


def both(*acceptors: Acceptor) -> Acceptor:
    """What all of them accept."""

    def read(states: tuple, symbol: str) -> tuple | None:
        after = tuple(acceptor.read(state, symbol) for acceptor, state in zip(acceptors, states))
        return None if None in after else after

    return Acceptor(
        tuple(acceptor.start for acceptor in acceptors),
        read,
        lambda states: all(acceptor.accepts(state) for acceptor, state in zip(acceptors, states)),
    )


def tally(modulo: int | None = None, **change: int | tuple[int, ...]) -> Acceptor:
    """Each symbol changes a count, or several, by that much; all must come to 0 (modulo a number).

    >>> same = tally(a=1, b=-1)
    >>> same.accepts(same.after("abba")), same.accepts(same.after("aab"))
    (True, False)
    """
    changes = {symbol: by if isinstance(by, tuple) else (by,) for symbol, by in change.items()}
    zero = (0,) * len(next(iter(changes.values())))

    def read(counts: tuple[int, ...], symbol: str) -> tuple[int, ...]:
        added = tuple(count + by for count, by in zip(counts, changes.get(symbol, zero)))
        return added if modulo is None else tuple(count % modulo for count in added)

    return Acceptor(zero, read, lambda counts: counts == zero)


def in_order(symbols: str, least: int = 0) -> Acceptor:
    """No symbol comes after a later one; and the first comes ``least`` times or more, 0 or 1."""

    def read(place: int, symbol: str) -> int | None:
        here = symbols.index(symbol)
        return None if here < place or (place < 0 and here > 0) else here

    # Before the first symbol, place is -1 if one of those must come and 0 if none need.
    return Acceptor(-least, read, lambda place: place >= 0)


def begins_with(first: str) -> Acceptor:
    """The first symbol is that one; the empty string does not begin with it."""

    def read(begun: bool, symbol: str) -> bool | None:
        return True if begun or symbol == first else None

    return Acceptor(False, read, bool)


def matching(pair: str) -> Acceptor:
    """The brackets of a pair match, whatever stands between them."""

    def read(depth: int, symbol: str) -> int | None:
        depth += (symbol == pair[0]) - (symbol == pair[1])
        return None if depth < 0 else depth

    return Acceptor(0, read, lambda depth: depth == 0)


def nested(pairs: list[str]) -> Acceptor:
    """Each bracket closes the one opened last; the state is what is open."""
    opening = {closing: opening for opening, closing in pairs}

    def read(open_: str, symbol: str) -> str | None:
        if symbol not in opening:
            return open_ + symbol
        return open_[:-1] if open_.endswith(opening[symbol]) and open_ else None

    # Whichever kind is on top, one closing bracket fits it.
    return Acceptor("", read, lambda open_: not open_, lambda open_: pairs[0][0] * len(open_))
