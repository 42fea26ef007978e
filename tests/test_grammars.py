"""Compare the vectorised grammars with naive_grammars, and check prompt sets, samples and errors."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from functools import cache
from importlib import import_module
from itertools import product
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_grammars import NAIVE, cancel
from scipy.stats import chi2_contingency

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.grammars import ALIASES, LANGUAGES, get_grammar, target
from rule_extrapolation.grammars.dyck import nested_words, num_nested_words

SOS, EOS, PAD = 0, 1, 2
# Of these, all short strings can be listed. test_answers.py has the others.
NAMES = [name for name in NAIVE if len(NAIVE[name].alphabet) <= 4]
BRACKETS = [name for name in NAMES if "brackets" in name or "parentheses" in name]
ANSWERS = ["parity", "majority", "first_symbol"]
LETTERS = [name for name in NAMES if name not in BRACKETS + ANSWERS]
# The first two symbols of ID and of OOD prompts, and the brackets that may follow each.
STARTS = {
    "parentheses_and_brackets": ({"([": "()[]"}, {")[": "()[]"}),
    "not_nested_parentheses_and_brackets": ({"([": "()[]"}, {")[": "()[]"}),
    "parentheses": ({"()": "()"}, {")(": "()"}),
    "brackets": ({"[]": "[]"}, {"][": "[]"}),
    "separated_brackets_and_parentheses": ({"((": "()", "[[": "[]"}, {"([": "()[]"}),
}
# The smallest max_length for which there are training words.
SHORTEST = {name: 2 for name in NAMES} | {"baN": 1, "bbaN": 1, "aNbNcN": 3, "aNbNaN": 3, "aNbM": 4}
SHORTEST |= dict.fromkeys(ANSWERS, 4)

every_language = pytest.mark.parametrize("name", NAMES)


def small(name, max_length=16, **options):
    """A grammar with the shortest possible prompts, so that any max_length is valid."""
    n = 0 if name in BRACKETS else 2 if name in ANSWERS else 1
    return get_grammar(name, max_length, test_prompt_length=n, **options)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def strings_of(name, length):
    return ["".join(symbols) for symbols in product(NAIVE[name].alphabet, repeat=length)]


def strings_up_to(name, length):
    return [s for n in range(length + 1) for s in strings_of(name, n)]


@cache
def words_up_to(name, length):
    return [s for s in strings_up_to(name, length) if NAIVE[name].grammatical(s)]


def naive_verdicts(name, strings):
    """The expected results of judge and is_prefix. None stands for a row that is not a string over the alphabet."""
    naive = NAIVE[name]
    nothing = dict.fromkeys([*naive.rules, "grammatical"], False)
    judged = [nothing if s is None else naive.judge(s) for s in strings]
    by_rule = {rule: [verdict[rule] for verdict in judged] for rule in nothing}
    return {**by_rule, "prefix": [s is not None and naive.is_prefix(s) for s in strings]}


def verdicts(grammar, rows):
    judged = {**grammar.judge(rows), "prefix": grammar.is_prefix(rows)}
    assert all(verdict.dtype == torch.bool for verdict in judged.values())
    return {rule: verdict.tolist() for rule, verdict in judged.items()}


def unframe(grammar, rows):
    """Check the frame of rows and return their words."""
    assert rows.shape[1] == grammar.max_length + 2 and rows.dtype == torch.long
    words = []
    for row in rows.tolist():
        end = row.index(EOS)
        assert row[0] == SOS and set(row[end + 1 :]) <= {PAD}
        assert all(3 <= token < grammar.num_tokens for token in row[1:end])
        words.append("".join(grammar.alphabet[token - 3] for token in row[1:end]))
    return words


# Rules and prefixes


@every_language
def test_naive_prefixes_are_the_prefixes_of_words(name):
    # Every prefix here can be completed to a word of at most three times its length.
    longest = {2: 5, 3: 3, 4: 2}[len(NAIVE[name].alphabet)]
    prefixes = {word[:n] for word in words_up_to(name, 3 * longest) for n in range(longest + 1)}
    assert {s for s in strings_up_to(name, longest) if NAIVE[name].is_prefix(s)} == prefixes


@every_language
def test_rules_and_prefixes_of_all_short_strings(name):
    longest = 6 if len(NAIVE[name].alphabet) == 4 else 8
    grammar = small(name)
    strings = strings_up_to(name, longest)
    expected = naive_verdicts(name, strings)
    assert verdicts(grammar, grammar.encode(strings)) == expected
    for length in range(longest + 1):
        these = [i for i, s in enumerate(strings) if len(s) == length]
        without_eos = grammar.encode([strings[i] for i in these])[:, :-1]
        assert verdicts(grammar, without_eos) == {rule: [held[i] for i in these] for rule, held in expected.items()}


@st.composite
def token_batches(draw, name):
    """(B, T) tokens, T <= 10: random rows, and words with inserted tokens, truncated to T."""
    alphabet = NAIVE[name].alphabet
    symbols = range(3, 3 + len(alphabet))
    length = draw(st.integers(0, 10))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        row = [3 + alphabet.index(symbol) for symbol in draw(st.sampled_from(words_up_to(name, 6)))]
        for token in draw(st.lists(st.sampled_from([SOS, EOS, PAD, *symbols]), max_size=2)):
            row.insert(draw(st.integers(0, len(row))), token)
        random = draw(st.lists(st.sampled_from([SOS, EOS, PAD, *4 * [*symbols]]), min_size=length, max_size=length))
        rows.append(random if draw(st.booleans()) else [*row, EOS, *random][:length])
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), length)


def text_or_none(name, row):
    row = row[: row.index(EOS)] if EOS in row else row
    return "".join(NAIVE[name].alphabet[token - 3] for token in row) if not {SOS, PAD} & {*row} else None


@every_language
def test_rules_and_prefixes_of_token_rows(name):
    grammar = small(name)

    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(token_batches(name))
    def check(rows):
        expected = naive_verdicts(name, [text_or_none(name, row) for row in rows.tolist()])
        assert verdicts(grammar, rows) == expected
        for i in range(len(rows)):
            assert verdicts(grammar, rows[i : i + 1]) == {rule: [held[i]] for rule, held in expected.items()}

    check()


@every_language
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_empty_strings_and_empty_batches(name, batch):
    grammar = small(name)
    assert verdicts(grammar, torch.empty(batch, 0, dtype=torch.long)) == naive_verdicts(name, [""] * batch)
    assert verdicts(grammar, torch.full((batch, 4), EOS)) == naive_verdicts(name, [""] * batch)
    assert verdicts(grammar, torch.full((batch, 4), PAD)) == naive_verdicts(name, [None] * batch)
    assert grammar.sample(0).shape == (0, grammar.max_length + 2)


# Text


@every_language
def test_text_round_trip(name):
    grammar = small(name)
    strings = ["", *strings_of(name, 3)]
    assert grammar.num_tokens == 3 + len(NAIVE[name].alphabet)
    assert grammar.to_text(grammar.encode(strings)) == strings
    first, last = NAIVE[name].alphabet[0], NAIVE[name].alphabet[-1]
    assert grammar.encode([first + last, last]).tolist() == [
        [3, grammar.num_tokens - 1, EOS],
        [grammar.num_tokens - 1, EOS, PAD],
    ]
    assert grammar.encode([]).shape == (0, 1)


@pytest.mark.parametrize(
    ("name", "strings", "message"),
    [
        ("aNbN", ["ab", "axbyx"], "'axbyx': 'xy' is not in the alphabet of aNbN: a b"),
        ("brackets", ["[("], "'[(': '(' is not in the alphabet of brackets: [ ]"),
    ],
)
def test_encode_names_what_is_not_in_the_alphabet(name, strings, message):
    with pytest.raises(ValueError) as error:
        small(name).encode(strings)
    assert str(error.value) == message


# Training words


def p_value_of_same_distribution(first, second):
    """The p-value of a chi-square test that two samples have the same distribution. Rare words share a cell."""
    counts = Counter(first), Counter(second)
    both = counts[0] + counts[1]
    enough = 5 * both.total() / min(len(first), len(second))
    cells = [[0, 0]]
    # Ties are broken alphabetically. By order of appearance, words that only one sample contains would share cells.
    for word in sorted(both, key=lambda word: (both[word], word)):
        if sum(cells[-1]) >= enough:
            cells.append([0, 0])
        cells[-1] = [cells[-1][i] + counts[i][word] for i in (0, 1)]
    assert len(cells) > 1
    return chi2_contingency(cells).pvalue


DRAWN = [(name, {"all_sequences": False} if name in ("aNbN", "aNbNcN") else {}) for name in NAMES]
DRAWN += [("aNbN", {"all_sequences": False, only: True}) for only in ("only_even", "only_odd")]


@pytest.mark.parametrize("name, options", DRAWN)
@pytest.mark.parametrize("max_length", [8, 9])
def test_samples_follow_the_naive_sampler(name, options, max_length):
    grammar = small(name, max_length, **options)
    rng = Random(max_length)
    naive_options = {option: value for option, value in options.items() if option != "all_sequences"}
    expected = [NAIVE[name].sample(max_length, rng, **naive_options) for _ in range(5_000)]
    words = unframe(grammar, grammar.dataset(10_000, seeded(max_length)))
    assert len(words) == 10_000 and p_value_of_same_distribution(words, expected) > 1e-3
    assert grammar.all_words() is None


@every_language
@pytest.mark.parametrize("max_length", [1, 2, 3, 4, 5, 7, 32, 256])
def test_words_are_grammatical_framed_and_fit(name, max_length):
    if max_length < SHORTEST[name]:
        with pytest.raises(ConfigError, match=f"^max_length={max_length}: .*{SHORTEST[name]} or more$"):
            small(name, max_length)
        return
    grammar = small(name, max_length)
    rows = grammar.sample(100, seeded(max_length))
    words = unframe(grammar, rows)
    assert len(words) == 100 and all(words)
    assert [word for word in words if not NAIVE[name].grammatical(word)] == []
    assert grammar.judge(rows[:, 1:])["grammatical"].all()


@pytest.mark.parametrize("num", [1, 2, 100, 101])
def test_separated_words_are_half_of_each_kind(num):
    grammar = small("separated_brackets_and_parentheses")
    words = unframe(grammar, grammar.sample(num, seeded(num)))
    assert sum(word[0] == "[" for word in words) in (num // 2, (num + 1) // 2)


@pytest.mark.parametrize(
    "name, options, max_length, words",
    [
        ("aNbN", {}, 9, ["ab", "aabb", "aaabbb", "aaaabbbb"]),
        ("aNbN", {}, 2, ["ab"]),
        ("aNbN", {"only_even": True}, 8, ["aabb", "aaaabbbb"]),
        ("aNbN", {"only_even": True}, 4, ["aabb"]),
        ("aNbN", {"only_odd": True}, 9, ["ab", "aaabbb"]),
        ("aNbNcN", {}, 11, ["abc", "aabbcc", "aaabbbccc"]),
        ("aNbNcN", {}, 3, ["abc"]),
    ],
)
def test_each_word_once(name, options, max_length, words):
    grammar = small(name, max_length, **options)
    assert sorted(unframe(grammar, grammar.all_words())) == sorted(words)
    assert torch.equal(grammar.dataset(100), grammar.all_words())
    assert grammar.optimal_loss == pytest.approx(math.log(len(words)) / (max_length + 1))


@every_language
def test_a_seed_determines_the_sample(name):
    grammar = small(name, 32)
    state = torch.get_rng_state()
    first, again, other = (grammar.sample(50, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    global_first, global_second = grammar.sample(50), grammar.sample(50)
    torch.set_rng_state(state)
    assert not torch.equal(global_first, global_second) and torch.equal(global_first, grammar.sample(50))


# Prompts


def prompt_texts(grammar):
    """Check that all prompts begin with SOS, and return the text of ID and OOD prompts."""
    assert set(grammar.prompts) == {"ID", "OOD", "SOS"}
    assert len(grammar.prompts["SOS"]) > 0 and grammar.prompts["SOS"].shape[1] == 1
    assert all((rows[:, 0] == SOS).all() for rows in grammar.prompts.values())
    return [grammar.to_text(grammar.prompts[part][:, 1:]) for part in ("ID", "OOD")]


@pytest.mark.parametrize("n", [1, 4, None])
@pytest.mark.parametrize("name", [name for name in LETTERS if name != "bbaN"])
def test_prompts_of_letters_are_all_strings(name, n):
    id_, ood = prompt_texts(get_grammar(name, 10, test_prompt_length=n))
    strings = strings_of(name, n or {"aNbNcN": 5}.get(name, 8))
    assert sorted(id_) == sorted(s for s in strings if NAIVE[name].is_prefix(s))
    assert sorted(ood) == sorted(s for s in strings if not NAIVE[name].is_prefix(s))
    assert n == 1 or (ood == []) == (name == "abN")


@pytest.mark.parametrize("n", [1, 2, 5, None])
def test_prompts_of_bban(n):
    id_, ood = prompt_texts(get_grammar("bbaN", 10, test_prompt_length=n))
    n = n or 8
    assert sorted(id_) == sorted("b" * i + "a" * (n - i) for i in range(1, n))
    assert sorted(ood) == sorted("a" + "b" * i + "a" * (n - 1 - i) for i in range(1, n - 1))


@pytest.mark.parametrize("n", [0, 2, 4, 8, None])
@pytest.mark.parametrize("name", BRACKETS)
def test_prompts_of_brackets_are_two_symbols_and_each_nested_word_once(name, n):
    parts = prompt_texts(get_grammar(name, 12, test_prompt_length=n))
    assert set(parts[0]).isdisjoint(parts[1])
    for prompts, starts in zip(parts, STARTS[name], strict=True):
        expected = {start + word for start, alphabet in starts.items() for word in closing_at_the_end(n, alphabet)}
        assert len(prompts) == len(expected) and set(prompts) == expected


def closing_at_the_end(n, alphabet):
    """The properly nested words of n symbols no proper beginning of which is nested."""
    words = ["".join(symbols) for symbols in product(alphabet, repeat=6 if n is None else n)]
    return [w for w in words if not cancel(w) and all(cancel(w[:i]) for i in range(1, len(w)))]


@pytest.mark.parametrize("name, alphabet", [("parentheses_and_brackets", "()[]"), ("brackets", "[]")])
def test_sampled_words_of_one_length_are_the_nested_words(name, alphabet):
    words = unframe(small(name, 6), small(name, 6).sample(5_000, seeded(0)))
    for length in (2, 4, 6):
        assert {word for word in words if len(word) == length} == set(nested_words(length, alphabet))


@pytest.mark.parametrize("kinds, alphabet", [(1, "()"), (2, "()[]")])
def test_number_of_nested_words(kinds, alphabet):
    assert all(num_nested_words(n, kinds) == len(nested_words(n, alphabet)) for n in range(0, 14, 2))


def test_default_numbers_of_prompts():
    assert [get_grammar(name, 16).num_prompts() for name in ("L3", "L5", "separated_brackets_and_parentheses")] == [
        {"ID": 5, "OOD": 251, "SOS": 1},
        {"ID": 16, "OOD": 16, "SOS": 1},
        {"ID": 4, "OOD": 16, "SOS": 1},
    ]


@every_language
def test_prompts_are_the_same_in_every_run(name):
    state = torch.get_rng_state()
    first = get_grammar(name, 16).prompts
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    again = get_grammar(name, 16).prompts
    assert all(torch.equal(first[part], again[part]) for part in first)


# Errors and names


@pytest.mark.parametrize(
    "name, settings, start",
    [
        ("aNbN", {"max_length": 1}, "max_length=1: "),
        ("aNbN", {"max_length": 0}, "max_length=0: "),
        ("aNbM", {"max_length": 3}, "max_length=3: "),
        ("aNbN", {"max_length": 3, "test_prompt_length": 1, "only_even": True}, "max_length=3: "),
        ("aNbN", {"max_length": 8, "only_even": True, "only_odd": True}, "only_even=true: "),
        ("baN", {"max_length": 7}, "test_prompt_length=8: "),
        ("baN", {"max_length": 8, "test_prompt_length": 0}, "test_prompt_length=0: "),
        ("baN", {"max_length": 8, "test_prompt_length": 9}, "test_prompt_length=9: "),
        ("abN", {"max_length": 64, "test_prompt_length": 18}, "test_prompt_length=18: "),
        ("aNbNcN", {"max_length": 64, "test_prompt_length": 11}, "test_prompt_length=11: "),
        ("L5", {"max_length": 7}, "test_prompt_length=6: "),
        ("L5", {"max_length": 16, "test_prompt_length": 5}, "test_prompt_length=5: "),
        ("L6", {"max_length": 16, "test_prompt_length": -2}, "test_prompt_length=-2: "),
        (
            "L5",
            {"max_length": 64, "test_prompt_length": 18},
            "test_prompt_length=18: gives 732,160 OOD prompts; use 16 or less",
        ),
        ("brackets", {"max_length": 64, "test_prompt_length": 26}, "test_prompt_length=26: gives 208,012 "),
        ("aNbn", {"max_length": 8}, "grammar=aNbn: did you mean aNbN?"),
        ("parenthesis", {"max_length": 8}, "grammar=parenthesis: did you mean parentheses?"),
        ("L9", {"max_length": 8}, "grammar=L9: "),
        ("?", {"max_length": 8}, "grammar=?: must be one of baN, "),
    ],
)
def test_invalid_settings_are_refused_in_one_line(name, settings, start):
    with pytest.raises(ConfigError) as error:
        get_grammar(name, **settings)
    assert str(error.value).startswith(start) and "\n" not in str(error.value)


def test_labels():
    assert ALIASES == {
        "L1": "baN",
        "L2": "bbaN",
        "L3": "aNbN",
        "L4": "aNbNcN",
        "L5": "parentheses_and_brackets",
        "L6": "not_nested_parentheses_and_brackets",
    }
    assert [get_grammar(label, 16).name for label in ALIASES] == [*ALIASES.values()]
    assert set(LANGUAGES) == set(NAIVE)


@every_language
def test_registry_agrees_with_the_classes(name):
    module, _, attribute = target(name).rpartition(".")
    cls = getattr(import_module(module), attribute)
    assert (cls.name, cls.label, cls.alphabet) == (name, LANGUAGES[name].label, NAIVE[name].alphabet)
    parameters = inspect.signature(cls).parameters
    of_all = ("max_length", "test_prompt_length", "num_sos_prompts")
    options = {p.name: p.default for p in parameters.values() if p.name not in of_all}
    assert options == LANGUAGES[name].options
