"""Compare languages of sequences and their answers, whose strings are too many to list, with naive_grammars."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
import torch
from naive_grammars import NAIVE

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.random import generator
from rule_extrapolation.grammars import get_grammar
from rule_extrapolation.grammars.chance import exact_levels
from rule_extrapolation.inference.decoding import Greedy
from rule_extrapolation.inference.evaluation import evaluate_length
from rule_extrapolation.models.oracle import OracleLM

LARGE = ["S3", "S5", "A5", "Z60", "modular_arithmetic"]
NAMES = [*LARGE, "parity", "majority", "first_symbol"]


def nearly_words(name: str, num: int) -> list[str]:
    """Words, their prefixes, and words with a symbol changed, added or left out."""
    rng = Random(0)
    naive = NAIVE[name]
    strings = [""]
    for _ in range(num):
        word = naive.sample(rng.choice([4, 6, 12]), rng)
        i, symbol = rng.randrange(len(word)), rng.choice(naive.alphabet)
        strings += [word, word[:i], word[:i] + word[i + 1 :], word[:i] + symbol + word[i:]]
        strings += [word[:i] + symbol + word[i + 1 :], word[0] + "=" + word[1:].replace("=", "")]
    return strings


@pytest.mark.parametrize("name", LARGE)
def test_rules_and_prefixes(name):
    grammar, strings = get_grammar(name, 16), nearly_words(name, 20)
    rows = grammar.encode(strings)
    judged = {rule: kept.tolist() for rule, kept in grammar.judge(rows).items()}
    expected = [NAIVE[name].judge(string) for string in strings]
    assert judged == {rule: [verdict[rule] for verdict in expected] for rule in judged}
    assert grammar.is_prefix(rows).tolist() == [NAIVE[name].is_prefix(string) for string in strings]
    assert 0.2 < sum(judged["grammatical"]) / len(strings) < 0.9


@pytest.mark.parametrize("name", LARGE)
def test_samples_are_words_with_the_naive_samplers_lengths_and_symbols(name):
    grammar, rng = get_grammar(name, 16), Random(1)
    rows = grammar.sample(4_000, generator(0))
    assert grammar.judge(rows[:, 1:])["grammatical"].all()
    ours = grammar.to_text(rows[:, 1:])
    theirs = [NAIVE[name].sample(16, rng) for _ in range(4_000)]
    for feature in (len, lambda word: word[0], lambda word: word[-1]):
        counts = Counter(map(feature, ours)), Counter(map(feature, theirs))
        assert counts[0].keys() == counts[1].keys()
        for value, times in counts[1].items():
            assert abs(counts[0][value] - times) < 6 * (2 * times + 2) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_sequences_without_and_with_a_misplaced_equals_sign(name):
    grammar = get_grammar(name, 16)
    id_, ood = (grammar.to_text(grammar.prompts[part][:, 1:]) for part in ("ID", "OOD"))
    assert len(id_) == len(set(id_)) == 256
    assert ood == [prompt[0] + "=" + prompt[1:] for prompt in id_]
    assert {len(prompt) for prompt in id_} == {8}
    assert grammar.is_prefix(grammar.prompts["ID"][:, 1:]).all()
    assert not grammar.is_prefix(grammar.prompts["OOD"][:, 1:]).any()
    chance = exact_levels(grammar, grammar.prompts["OOD"], 20, "OOD")
    assert chance["OOD/rule_1_accuracy"] > chance["OOD/rule_2_accuracy"] == 0  # only R2 is beyond repair


def test_few_sequences_are_all_listed():
    prompts = get_grammar("parity", 16, test_prompt_length=2).prompts["OOD"]
    assert get_grammar("parity", 16).to_text(prompts[:, 1:]) == ["0=0", "0=1", "1=0", "1=1"]


def test_longer_strings_than_training_words_are_counted_right():
    grammar = get_grammar("majority", 12)
    rows = grammar.encode(["a" * 40 + "b" * 39 + "=a", "a" * 40 + "b" * 41 + "=a", "ab" * 20 + "=a"])
    assert grammar.judge(rows)["rule_1"].tolist() == [True, False, False]


def test_every_word_of_one_number_of_inputs_is_equally_probable():
    grammar = get_grammar("modular_arithmetic", 7, test_prompt_length=3)  # 1, 3 or 5 inputs
    words = [f"{a}={a}" for a in range(5)]
    words += [f"{a}{op}{b}={eval(f'{a}{op}{b}') % 5}" for a in range(5) for b in range(5) for op in "+-*"]
    rows = torch.nn.functional.pad(grammar.encode(words), (1, 0), value=0)
    assert grammar.log_probability(rows).exp().tolist() == pytest.approx([1 / 3 / 5] * 5 + [1 / 3 / 75] * 75)
    entropy = (math.log(3 * 5) + math.log(3 * 75) + math.log(3 * 75 * 15)) / 3
    assert grammar.process.entropy() == pytest.approx(entropy)


@pytest.mark.parametrize("n", [1, 15])
def test_prompts_that_leave_no_room_for_an_answer_are_refused(n):
    with pytest.raises(ConfigError, match=f"test_prompt_length={n}: must be from 2 to 14: "):
        get_grammar("parity", 16, test_prompt_length=n)


def test_words_of_one_length_are_evaluated_by_their_answer():
    grammar = get_grammar("S3", 16)
    words = grammar.sample(200, generator(0))
    words = words[(words != 2).sum(1) == 12, :12]
    row = evaluate_length(grammar, OracleLM(grammar.num_tokens, grammar.process), words, Greedy(20), 1)
    assert (row["prompt_symbols"], row["grammatical_accuracy"]) == (9, 1.0)
