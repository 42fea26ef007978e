"""Compare the mixture over rules with an enumeration of all rules and all words, in exact fractions."""

import math
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import read_results

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.random import generator
from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL, PAD, SOS
from rule_extrapolation.grammars import get_grammar
from rule_extrapolation.models.normative import NormativeLM
from rule_extrapolation.models.normative_rules import (
    all_counts,
    automaton_bits,
    consistent_automata,
    transition_tables,
)

LENGTH = 6
STRINGS = ["".join(symbols) for n in range(LENGTH + 1) for symbols in product("ab", repeat=n)]


def naive_automata(states):
    """(accepted strings of up to LENGTH symbols, bits) of every language, from all tables in all numberings."""
    found = {}
    for n in range(1, states + 1):
        for moves in product(range(n + 1), repeat=2 * n):
            for ends in product([False, True], repeat=n):
                accepted = frozenset(s for s in STRINGS if accepts(moves, ends, n, s))
                found.setdefault(accepted, automaton_bits(n, 2))
    return found


def accepts(moves, ends, n, string):
    state = 0
    for symbol in string:
        state = moves[2 * state + "ab".index(symbol)]
        if state == n:
            return False
    return ends[state]


def naive_counts(max_coefficient, max_modulo):
    """{kept strings: bits} of every count, by its shortest form, with the gamma code written out."""
    length = {1: 1, 2: 3, 3: 3, 4: 5, 5: 5, 6: 5, 7: 5}
    signed = {0: 1, -1: 2, 1: 3, -2: 4, 2: 5, -3: 6, 3: 7}
    found = {frozenset(STRINGS): 1}
    for m in [0, *range(2, max_modulo + 1)]:
        values = range(m) if m else range(-max_coefficient, max_coefficient + 1)
        for i, j, d in product(values, repeat=3):
            if (i or j) and math.gcd(i, j, m) == 1:
                sums = ((s, i * s.count("a") + j * s.count("b")) for s in STRINGS)
                kept = frozenset(s for s, total in sums if (total % m if m else total) == d)
                bits = 2 + sum(length[signed[k]] for k in (i, j, d)) + (length[m - 1] if m else 0)
                found[kept] = min(bits, found.get(kept, bits))
    return found


def naive_rules(words, states, max_coefficient, max_modulo):
    """[(posterior up to a factor, probability of each string)] of every rule that the words keep."""
    rules = []
    for accepted, bits in naive_automata(states).items():
        for kept, more in naive_counts(max_coefficient, max_modulo).items():
            rule = accepted & kept
            if not rule.issuperset(words):
                continue
            numbers = [sum(len(s) == n for s in rule) for n in range(LENGTH + 1)]
            lengths = sum(number > 0 for number in numbers)
            probability = {s: Fraction(1, lengths * numbers[len(s)]) for s in rule}
            weight = Fraction(2 ** -(bits + more)).limit_denominator(10**30)
            for word in words:
                weight *= probability[word]
            rules.append((weight, probability))
    return rules


def encoded(string):
    return [FIRST_SYMBOL + "ab".index(symbol) for symbol in string]


def fitted(words, **arguments):
    model = NormativeLM(FIRST_SYMBOL + 2, LENGTH, **arguments)
    rows = [[SOS, *encoded(word), EOS] + [PAD] * (LENGTH - len(word)) for word in words]
    rows = torch.tensor(rows)
    model.fit_counts([rows[:2], rows[2:]], [])
    return model


@pytest.mark.parametrize(
    "words, states, max_modulo",
    [
        (["b", "baa", "abba", "bb", "b"], 2, 3),
        (["ab", "aabb", "aaabbb"], 2, 2),
        (["ab", "aabb"], 1, 4),
        (["bba", "", "a", "aab"], 2, 1),
    ],
    ids=str,
)
def test_every_probability_agrees_with_enumeration(words, states, max_modulo):
    model = fitted(words, states=states, max_modulo=max_modulo)
    rules = naive_rules(words, states, 2, max_modulo)
    total = dict.fromkeys(STRINGS, 0)
    for weight, probability in rules:
        for string, p in probability.items():
            total[string] += weight * p
    for prefix in [s for s in STRINGS if len(s) in (0, 1, 3, LENGTH - 1, LENGTH)]:
        begun = sum(p for s, p in total.items() if s.startswith(prefix))
        expected = torch.zeros(model.num_tokens, dtype=torch.double)
        expected[EOS] = float(total[prefix] / begun)
        for i, symbol in enumerate("ab"):
            longer = sum(p for s, p in total.items() if s.startswith(prefix + symbol))
            expected[FIRST_SYMBOL + i] = float(longer / begun)
        tokens = torch.tensor([[SOS, *encoded(prefix)]])
        found = model(tokens)[0, :, -1].double().exp()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_automata_are_those_of_all_numberings():
    """Minimal complete automata of 1, 2 and 3 states over two letters: 2, 24 and 1028 languages (OEIS A059412)."""
    nothing = torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    for states in (1, 2):
        tables, _, bits = consistent_automata(states, 2, *nothing)
        naive = naive_automata(states)
        assert sorted(bits.tolist()) == sorted(naive.values())
    tables, _, _ = consistent_automata(3, 2, *nothing)
    # Of three states without the one that accepts nothing: all of up to 3 states, and those of 4 states with it.
    assert len(tables) > 2 + 24 + 1028
    # Initially connected complete tables of 1, 2 and 3 states over two letters: 1, 12 and 216 (Almeida et al. 2007).
    for states, number in ((1, 1), (2, 12), (3, 216)):
        assert (transition_tables(states, 2) < states).all((1, 2)).sum() == number


def test_counts_are_stated_once():
    kept = all_counts(2, 2, 4)
    assert len(set(kept)) == len(kept)
    descriptions = [count.describe("ab") for count in kept]
    assert {"", "#a = 0 mod 2", "#a - #b = 0", "2#a - #b = 0", "#a + #b = 1 mod 2"} <= set(descriptions)
    # Other forms of #a - #b = 0, #a = 1 mod 3, and #a + 3#b = 0 mod 4.
    assert not {"2#a - 2#b = 0", "- #a + #b = 0", "2#a = 2 mod 3", "3#a + #b = 0 mod 4"} & set(descriptions)


@pytest.mark.parametrize("language, rule", [("L1", "#a = 0 mod 2"), ("L2", "#a = 0 mod 2"), ("L3", "#a - #b = 0")])
def test_it_finds_the_rules_of_l1_to_l3(language, rule):
    grammar = get_grammar(language, max_length=20)
    rows = grammar.all_words()
    rows = grammar.sample(300, generator(0)) if rows is None else rows
    model = NormativeLM(grammar.num_tokens, 20)
    model.fit_counts([rows], [])
    descriptions = " | ".join(text for _, text in model.most_probable(3, alphabet=grammar.alphabet))
    assert rule in descriptions
    # What the most probable rules allow are words: the model never begins a string that begins no word.
    probabilities = model(grammar.sample(50, generator(1))[:, :-1]).exp()
    assert probabilities.sum(1).allclose(torch.ones(1))
    assert math.isclose(sum(p for p, _ in model.most_probable(10**6)), 1, rel_tol=1e-6)


def test_other_lengths_than_in_training():
    model = fitted(["b", "bb", "baa", "abba"])
    longer = NormativeLM(model.num_tokens, 9)
    longer.load_state_dict(model.state_dict())
    row = torch.tensor([[SOS, *[FIRST_SYMBOL + 1] * LENGTH]])
    assert model(row)[0, EOS, -1].exp() == 1  # no word is longer
    assert longer(row)[0, EOS, -1].exp() < 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"states": 9}, "states=9: too many automata over 2 symbols; use 3 or fewer"),
        ({"states": 0}, "states=0: must be greater than 0"),
        ({"num_tokens": 70}, "states=null: too many automata over 67 symbols; use a language with fewer symbols"),
        ({"max_data_length": 2000}, "max_data_length=2000: the number of words exceeds the range of floats; use 996"),
    ],
    ids=str,
)
def test_refused(arguments, message):
    with pytest.raises(ConfigError) as error:
        NormativeLM(**{"num_tokens": 5, **arguments})
    assert message in str(error.value)


@pytest.mark.slow
def test_a_run(cli):
    assert cli("model=normative", "grammar=L1", "hydra.run.dir=run", "logger=csv")[0] == 0
    results = read_results(Path("run"))
    assert results["baseline"] and results["num_parameters"] == 0
    assert results["test"]["Test/ID/rule_1_accuracy"] == 1


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["grammar=A5"], "error: model.states=null: too many automata over 61 symbols; use a language with fewer"),
        (["data.max_length=1200"], "error: model.max_data_length=1200: the number of words exceeds the range of"),
        (["model.states=5"], "error: model.states=5: too many automata over 2 symbols; use 3 or fewer"),
        (["data=text"], "error: model.states=null: too many automata over"),
    ],
    ids=str,
)
def test_what_it_does_not_cover_is_one_line(cli, tmp_path, overrides, message):
    status, printed, error = cli("model=normative", "hydra.run.dir=run", *overrides)
    assert (status, printed) == (2, "")
    assert error.startswith(message) and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
