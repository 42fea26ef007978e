from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, product

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError, check_positive
from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL, PAD, SOS
from rule_extrapolation.models.language_model import LanguageModel

MAX_AUTOMATA = 2**16
"""The maximum number of transition tables that are listed."""
MAX_BYTES = 2**31
"""The maximum size of the table of completions."""
WORDS_AT_ONCE = 2048

NormativeState = tuple[Tensor, Tensor, Tensor, int]
"""(B, H) each rule's node, (B,) the number of symbols read, (B,) bool: whether the word has ended, and the number of
tokens read."""


class NormativeLM(LanguageModel):
    """A Bayesian mixture over rules: what the simplest explanation of the training words would do.

    A rule is an automaton and a count, both of which a word keeps.

    - Automata are all deterministic finite automata of up to ``states`` states, besides one from which nothing is
      accepted. Each language counts once, by its smallest automaton.
    - Counts are: no condition; ``c #x + c' #y = d`` for one or two symbols, with coefficients of which none is larger
      than ``max_coefficient`` and no common divisor; and the same modulo m, up to ``max_modulo``.

    The prior of a rule is 2^-bits, its description length (``automaton_bits``, ``Count.bits``). Given a rule, a word's
    length is drawn uniformly from those, up to the maximum, at which the rule has words, and then the word uniformly
    from the rule's words of this length. So the posterior prefers rules with few words (the size principle of
    Tenenbaum & Griffiths 2001) and is zero for those that a training word breaks. It is exact.

    Completions are those of the mixture given the prompt: a rule that the prompt has broken has no weight, and those
    that remain keep their ratio. An OOD prompt is thus read as a word of the most probable rule that allows both it and
    the training words. "All strings" is one of the rules, so that there is always one.

    Rules with more than one count (#a = #b = #c), more states, or a memory (nested brackets) are not covered.

    Logits are log-probabilities. Impossible tokens get the logarithm of the smallest positive float, so that losses
    stay finite. EOS and PAD are followed by PAD.

    Args:
        max_data_length: the maximum number of symbols in a word. The model reads one token more, SOS.
        states: of the automata. None: as many as the number of symbols allows: 3 for two symbols,
            2 for three or four.
        max_coefficient: the largest coefficient and constant of an equation.
        max_modulo: the largest m. 1: no congruences.

    Raises:
        ConfigError: a size that is not positive; too many automata; a maximum length whose number of words exceeds the
            range of floats; training rows that are not words; more rules than memory is planned for.
    """

    fitted_by_counting = True
    baseline = True
    context_setting = "max_data_length"

    def __init__(
        self,
        num_tokens: int,
        max_data_length: int = 32,
        states: int | None = None,
        max_coefficient: int = 2,
        max_modulo: int = 4,
    ):
        super().__init__()
        sizes = {"max_coefficient": max_coefficient, "max_modulo": max_modulo}
        check_positive(max_data_length=max_data_length, **sizes, **({} if states is None else {"states": states}))
        self.num_tokens, self.num_symbols = num_tokens, num_tokens - FIRST_SYMBOL
        if self.num_symbols < 1:
            raise ConfigError("num_tokens", num_tokens, "has no symbols besides SOS, EOS and PAD")
        possible = [k for k in range(1, 20) if num_tables(k, self.num_symbols) <= MAX_AUTOMATA]
        if (states or 1) > len(possible):
            fix = f"too many automata over {self.num_symbols} symbols; " + (
                f"use {len(possible)} or fewer" if possible else "use a language with fewer symbols or another model"
            )
            raise ConfigError("states", states, fix)
        longest = int(300 / math.log10(max(self.num_symbols, 2)))
        if max_data_length > longest:
            fix = f"the number of words exceeds the range of floats; use {longest} or less"
            raise ConfigError("max_data_length", max_data_length, fix)
        self.states = min(3, len(possible)) if states is None else states
        self.max_context = max_data_length + 1
        self.max_length = max_data_length
        self.counts = all_counts(self.num_symbols, max_coefficient, max_modulo)
        # The rules that the training words keep. Until ``fit_counts``, the rule "all strings" alone.
        self.register_buffer("tables", torch.zeros(1, self.states + 1, self.num_symbols, dtype=torch.long))
        self.tables[:, 1:] = self.states
        self.register_buffer("accepting", F.one_hot(torch.zeros(1, dtype=torch.long), self.states + 1).bool())
        self.register_buffer("count_numbers", torch.zeros(1, dtype=torch.long))
        self.register_buffer("log_posterior", torch.zeros(1, dtype=torch.double))
        self._rules: Rules | None = None

    def fit_counts(self, rows: Iterable[Tensor], held_out: Iterable[Tensor], carried: bool = False) -> None:
        rows = torch.cat([batch.cpu() for batch in rows])
        words = rows[(rows == EOS).any(1)]
        if carried or not len(words):
            raise ConfigError("model", "normative", "learns from words, which end; set data=grammar")
        symbols, lengths = symbols_of(words)
        tables, accepting, bits = consistent_automata(self.states, self.num_symbols, symbols, lengths)
        kept = torch.tensor([number for number, count in enumerate(self.counts) if count.is_kept_by(symbols, lengths)])
        numbers = kept.repeat(len(tables))
        repeated = (each.repeat_interleave(len(kept), 0) for each in (tables, accepting, bits))
        self.tables, self.accepting, bits = (each.to(self.tables.device) for each in repeated)
        self.count_numbers = numbers.to(self.tables.device)
        bits = bits + torch.tensor([count.bits for count in self.counts], device=bits.device)[self.count_numbers]
        self._rules = None
        lengths = lengths.to(bits.device).clamp(max=self.max_length)
        log_likelihood = self.rules.log_word[:, lengths].sum(1)
        self.log_posterior = (log_likelihood - bits * math.log(2)).log_softmax(0)

    @property
    def rules(self) -> Rules:
        """The rules as one automaton, which is built when it is first used."""
        if self._rules is None or self._rules.next.device != self.tables.device:
            counts = [self.counts[number] for number in self.count_numbers.tolist()]
            self._rules = Rules(self.tables, self.accepting, counts, self.max_length)
        return self._rules

    def most_probable(self, number: int = 5, prompt: str = "", alphabet: str | None = None) -> list[tuple[float, str]]:
        """The most probable rules that a prompt allows, in words, each after its posterior probability.

        Args:
            prompt: symbols of the alphabet.
            alphabet: the symbols in the order of their tokens; by default a, b, c and so on.
        """
        alphabet = alphabet or "".join(chr(ord("a") + i) for i in range(self.num_symbols))
        tokens = torch.tensor([[SOS, *(FIRST_SYMBOL + alphabet.index(symbol) for symbol in prompt)]])
        _, (nodes, read, *_) = self.advance(tokens.to(self.tables.device), self.init_state(1))
        weights = (self.log_posterior + self.rules.log_completions[nodes[0], read[0]]).softmax(0)
        best = weights.topk(min(number, len(weights)))
        return [(float(p), self.describe(int(h), alphabet)) for p, h in zip(best.values, best.indices)]

    def describe(self, rule: int, alphabet: str) -> str:
        """A rule in words, such as "0 -b-> 1, 1 -a-> 1, 1 -b-> 1; ends in 1; #a = 0 mod 2"."""
        table, dead = self.tables[rule].tolist(), self.states
        moves = [
            f"{q} -{alphabet[x]}-> {to}"
            for q in range(dead)
            for x, to in enumerate(table[q])
            if to != dead and q in reached_states(table, dead)
        ]
        ends = ", ".join(str(q) for q in reached_states(table, dead) if self.accepting[rule, q])
        count = self.counts[int(self.count_numbers[rule])].describe(alphabet)
        return "; ".join(filter(None, [", ".join(moves), f"ends in {ends}", count]))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        # How many rules there are depends on the training words.
        for name, buffer in self.named_buffers():
            if prefix + name in state_dict:
                setattr(self, name, buffer.new_empty(state_dict[prefix + name].shape))
        self._rules = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_state(self, batch_size: int) -> NormativeState:
        nodes = self.rules.roots.expand(batch_size, -1)
        return nodes, nodes.new_zeros(batch_size), torch.zeros(batch_size, dtype=torch.bool, device=nodes.device), 0

    def advance(self, tokens: Tensor, state: NormativeState) -> tuple[Tensor, NormativeState]:
        nodes, read, ended, num_tokens = state
        num_tokens += tokens.shape[1]
        self.check_context(num_tokens)
        rules, logits = self.rules, []
        for token in tokens.unbind(1):
            is_symbol = token >= FIRST_SYMBOL
            fresh = ended | ~is_symbol
            nodes = torch.where(fresh[:, None], rules.roots, nodes)
            read = torch.where(fresh, 0, read)
            symbol = (token - FIRST_SYMBOL).clamp_min(0)[:, None].expand_as(nodes)
            nodes = torch.where(is_symbol[:, None], rules.next[nodes, symbol], nodes)
            read = read + is_symbol
            ended = (token == EOS) | (token == PAD)
            logits.append(self.logits(nodes, read, ended))
        return torch.stack(logits, 1), (nodes, read, ended, num_tokens)

    def logits(self, nodes: Tensor, read: Tensor, ended: Tensor) -> Tensor:
        """(B, num_tokens) log-probabilities of the next token."""
        rules = self.rules
        time = read.clamp(max=self.max_length)  # beyond it, no rule has a word
        ends = torch.where(rules.accepts[nodes], rules.log_word[:, time].T, -torch.inf)  # (B, H)
        continues = rules.log_completions[rules.next[nodes], time[:, None, None] + 1]  # (B, H, symbols)
        weights = torch.cat([ends[..., None], continues], 2) + self.log_posterior[:, None]
        weights = torch.where((read > self.max_length)[:, None, None], -torch.inf, weights)
        total = weights.logsumexp(1)
        is_possible = total.isfinite().any(1, keepdim=True)
        nothing = F.one_hot(torch.zeros_like(read), total.shape[1]).double().log()  # EOS
        words = torch.where(is_possible, total, nothing).log_softmax(1)
        result = words.new_full((len(nodes), self.num_tokens), -torch.inf)
        result[:, EOS], result[:, FIRST_SYMBOL:] = words[:, 0], words[:, 1:]
        pad = F.one_hot(torch.full_like(read, PAD), self.num_tokens).double().log()
        result = torch.where(ended[:, None], pad, result)
        return result.clamp_min(math.log(torch.finfo(torch.float32).tiny)).float()


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


def symbols_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(W, T) framed words -> (W, T) symbols from 0, which go on after a word's end, and (W,) lengths.

    A special token within a word, which no language's words have, counts as no symbol.
    """
    before = (rows == EOS).cumsum(1) == 0
    is_symbol = before & (rows >= FIRST_SYMBOL)
    order = (~is_symbol).byte().argsort(dim=1, stable=True)
    return (rows.gather(1, order) - FIRST_SYMBOL).clamp_min(0), is_symbol.sum(1)


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
