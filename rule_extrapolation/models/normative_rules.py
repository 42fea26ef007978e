"""The rules of the normative model: finite automata and counts, with their description lengths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, product

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError

MAX_BYTES = 2**31
"""The maximum size of the table of completions."""
WORDS_AT_ONCE = 2048


@dataclass(frozen=True)
class Count:
    """A condition on how often symbols occur.

    Args:
        coefficients: of each symbol's number of occurrences.
        constant: what the sum is equal to.
        modulo: m of a congruence. 0: an equation. 1: no condition.
    """

    coefficients: tuple[int, ...]
    constant: int
    modulo: int

    @property
    def bits(self) -> float:
        """The description length: 1 bit for whether there is a condition, 1 for its kind, and the integers.

        Each is written in the gamma code of Elias (1975), in 2 floor(log2 n) + 1 bits, the signed ones as 0, -1, 1...
        """
        if self.modulo == 1:
            return 1
        signed = sum(gamma_bits(2 * abs(n) + (n >= 0)) for n in (*self.coefficients, self.constant))
        return 2 + signed + (gamma_bits(self.modulo - 1) if self.modulo else 0)

    def multiplied(self, factor: int) -> Count:
        """The condition with both sides multiplied by a factor."""
        numbers = [factor * n % self.modulo if self.modulo else factor * n for n in (*self.coefficients, self.constant)]
        return Count(tuple(numbers[:-1]), numbers[-1], self.modulo)

    def values(self, sums: Tensor) -> Tensor:
        return sums % self.modulo if self.modulo else sums

    def is_kept_by(self, symbols: Tensor, lengths: Tensor) -> bool:
        """Whether all (W, T) words of these (W,) lengths keep it; symbols count from 0."""
        is_symbol = torch.arange(symbols.shape[1]) < lengths[:, None]
        sums = (torch.tensor(self.coefficients)[symbols] * is_symbol).sum(1)
        return bool((self.values(sums) == self.constant).all())

    def describe(self, alphabet: str) -> str:
        if self.modulo == 1:
            return ""
        terms = [
            f"{'- ' if c < 0 else '+ '}{abs(c) if abs(c) > 1 else ''}#{symbol}"
            for c, symbol in zip(self.coefficients, alphabet)
            if c
        ]
        congruence = f" mod {self.modulo}" if self.modulo else ""
        return f"{' '.join(terms).removeprefix('+ ')} = {self.constant}{congruence}"


class Rules:
    """Rules as one automaton, whose nodes are the pairs of an automaton's state and a count's value.

    Shapes: H rules, N nodes, L is ``max_length``. Node 0 is that of all broken rules.

    Attributes:
        next: (N, symbols) the node after each symbol.
        roots: (H,) the node of the empty word.
        accepts: (N,) bool: whether the string that led here is a word.
        log_word: (H, L + 1) the log-probability of a word of each length; -inf where the rule has none.
        log_completions: (N, L + 2) the log-probability that a word begins with a string that led to the node, by the
            string's length.
    """

    def __init__(self, tables: Tensor, accepting: Tensor, counts: list[Count], max_length: int):
        device = tables.device
        self.max_length = max_length
        next_, accepts, roots, owners, size = [], [], [], [], 1
        for rule, (table, ends, count) in enumerate(zip(tables.cpu(), accepting.cpu(), counts)):
            dead = len(table) - 1
            # Values of an equation from which no word of the maximum length returns are left out.
            reach = max(map(abs, count.coefficients)) * ((max_length + 1) // 2) + abs(count.constant)
            values = torch.arange(count.modulo) if count.modulo else torch.arange(-reach, reach + 1)
            after = count.values(values[:, None] + torch.tensor(count.coefficients)) - values[0]  # (V, symbols)
            is_possible = (after >= 0) & (after < len(values))
            to = table[:dead, None]  # (states, 1, symbols)
            place = size + to * len(values) + after
            next_.append(torch.where(is_possible & (to != dead), place, 0).flatten(0, 1))
            accepts.append((ends[:dead, None] & (values == count.constant)).flatten())
            roots.append(size - int(values[0]))
            owners.append(torch.full((dead * len(values),), rule))
            size += dead * len(values)
        bytes_ = size * (max_length + 2) * 4
        if bytes_ > MAX_BYTES:
            fix = f"{len(counts):,} rules fit the words and would take {bytes_ / 2**30:.0f} GiB; set fewer model.states"
            raise ConfigError("data.max_length", max_length, fix)
        symbols = tables.shape[2]
        self.next = torch.cat([torch.zeros(1, symbols, dtype=torch.long), *next_]).to(device)
        self.accepts = torch.cat([torch.zeros(1, dtype=torch.bool), *accepts]).to(device)
        self.roots = torch.tensor(roots, device=device)
        self.owners = torch.cat([torch.zeros(1, dtype=torch.long), *owners]).to(device)
        self.log_word = self.log_word_probability()
        self.log_completions = self.log_completion_probability()

    def log_word_probability(self) -> Tensor:
        words = self.accepts.double()  # (N,) accepted strings of each length from each node
        numbers = [words[self.roots]]
        for _ in range(self.max_length):
            words = words[self.next].sum(1)
            numbers.append(words[self.roots])
        numbers = torch.stack(numbers, 1)
        lengths = (numbers > 0).sum(1, keepdim=True)
        return -(numbers * lengths).log().where(numbers > 0, torch.inf)

    def log_completion_probability(self) -> Tensor:
        result = torch.full((len(self.next), self.max_length + 2), -torch.inf, device=self.next.device)
        word = self.log_word.exp()
        after = torch.zeros(len(self.next), dtype=torch.double, device=self.next.device)
        for length in range(self.max_length, -1, -1):
            after = after[self.next].sum(1) + self.accepts * word[self.owners, length]
            result[:, length] = after.log()
        return result


def num_tables(states: int, symbols: int) -> int:
    return (states + 1) ** (states * symbols)


def gamma_bits(n: int) -> int:
    """The length of a positive integer in the gamma code of Elias (1975)."""
    return 2 * (n.bit_length() - 1) + 1


def automaton_bits(states: int, symbols: int) -> float:
    """The description length: the number of states, each transition or its absence, and which states accept."""
    return gamma_bits(states) + states * symbols * math.log2(states + 1) + states


def all_counts(symbols: int, max_coefficient: int, max_modulo: int) -> list[Count]:
    """All counts, the absence of a condition first. Each is there once, in the shortest of its forms."""
    used = [places for size in (1, 2) for places in combinations(range(symbols), size)]
    signed = range(-max_coefficient, max_coefficient + 1)
    found = {}
    for modulo in (0, *range(2, max_modulo + 1)):
        numbers = range(modulo) if modulo else signed
        factors = [u for u in numbers if math.gcd(u, modulo) == 1] if modulo else [1, -1]
        for places in used:
            for values in product([n for n in numbers if n], repeat=len(places)):
                if math.gcd(*values, modulo) != 1:
                    continue
                coefficients = tuple(dict(zip(places, values)).get(x, 0) for x in range(symbols))
                for constant in numbers:
                    count = Count(coefficients, constant, modulo)
                    forms = [count.multiplied(factor) for factor in factors]
                    found[
                        min(forms, key=lambda form: (form.bits, form.coefficients < (0,) * symbols, form.coefficients))
                    ] = None
    return [Count((0,) * symbols, 0, 1), *found]


def reached_states(table: list[list[int]], dead: int) -> list[int]:
    found = [0]
    for state in found:
        found += sorted({to for to in table[state] if to != dead and to not in found})
    return found


def transition_tables(states: int, symbols: int) -> Tensor:
    """(S, states, symbols): the tables of this many states, all of them reached, in one numbering each.

    States are numbered in the order in which breadth-first search from state 0 meets them. ``states`` is the state
    from which nothing is accepted.
    """
    number = torch.arange(num_tables(states, symbols))
    digits = [number // (states + 1) ** place % (states + 1) for place in range(states * symbols)]
    seen, is_canonical = torch.ones_like(number), torch.ones_like(number, dtype=torch.bool)
    for place, to in enumerate(digits):
        is_canonical &= (place // symbols < seen) & ((to <= seen) | (to == states))
        seen += (to == seen) & (to != states)
    is_canonical &= seen == states
    return torch.stack(digits, 1)[is_canonical].unflatten(1, (states, symbols))


def consistent_automata(states: int, symbols: int, words: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The automata of up to ``states`` states that accept all (W, T) words of these (W,) lengths.

    Returns:
        (A, states + 1, symbols) tables, in which the last state accepts nothing; (A, states + 1) bool, the accepting
        states; and (A,) description lengths in bits. Automata of the same language are there once, as the smallest.
    """
    found: dict[bytes, tuple[Tensor, Tensor, float]] = {}
    rows = torch.cat([lengths[:, None], words], 1).unique(dim=0)
    lengths, words = rows[:, 0], rows[:, 1:]
    for size in range(1, states + 1):
        tables = transition_tables(size, symbols)
        tables = torch.where(tables == size, states, tables)
        tables = F.pad(tables, (0, 0, 0, states + 1 - size), value=states)
        reached = torch.zeros(len(tables), states + 1, dtype=torch.bool)
        begin, chunk = 0, 32  # few words refute most of the automata
        while begin < len(words):
            some = slice(begin, begin + chunk)
            reached = reached | ends_of(tables, words[some], lengths[some])
            is_alive = ~reached[:, states]
            tables, reached = tables[is_alive], reached[is_alive]
            begin, chunk = begin + chunk, WORDS_AT_ONCE
        bits = automaton_bits(size, symbols)
        for ends in product([False, True], repeat=size):
            accepting = F.pad(torch.tensor(ends), (0, states + 1 - size))
            fits = ~(reached & ~accepting).any(1)
            for table, key in zip(tables[fits], languages(tables[fits], accepting)):
                found.setdefault(key, (table, accepting, bits))
    tables, accepting, bits = zip(*found.values())
    return torch.stack(tables), torch.stack(accepting), torch.tensor(bits, dtype=torch.double)


def ends_of(tables: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
    """(S, states + 1) bool: the states in which a table ends some word."""
    flat = tables.flatten(1)
    state = torch.zeros(len(tables), len(words), dtype=torch.long)
    for t in range(int(lengths.max())):
        after = flat.gather(1, state * tables.shape[2] + words[:, t])
        state = torch.where(t < lengths, after, state)
    return torch.zeros(tables.shape[:2], dtype=torch.bool).scatter_(1, state, True)


def languages(tables: Tensor, accepting: Tensor) -> list[bytes]:
    """A key for each table, the same if and only if the languages are the same.

    Two automata of n and m states that agree on all strings of up to n + m - 2 symbols agree on all (Moore 1956).
    """
    if not len(tables):
        return []
    flat, symbols = tables.flatten(1), tables.shape[2]
    state = torch.zeros(len(tables), 1, dtype=torch.long)
    verdicts = [accepting[state]]
    for _ in range(2 * tables.shape[1] - 2):
        after = state[:, :, None] * symbols + torch.arange(symbols)
        state = flat.gather(1, after.flatten(1))
        verdicts.append(accepting[state])
    return [row.tobytes() for row in torch.cat(verdicts, 1).numpy()]
