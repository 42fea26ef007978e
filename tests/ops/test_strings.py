"""The compiled kernels for strings and words give exactly the results of the torch implementations."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_grammars import NAIVE
from scipy.stats import chisquare
from test_grammars import every_language, naive_verdicts, small, text_or_none, token_batches, verdicts

from rule_extrapolation.grammars import get_grammar
from rule_extrapolation.ops import strings, words
from rule_extrapolation.ops._kernels import launcher

PAD = 2
TORCH, COMPILED = 2**62, 0


@pytest.fixture
def both(monkeypatch):
    """Calls a function with the torch implementations and with the kernels, at any size."""

    def both(function):
        results = []
        for worth_compiling in (TORCH, COMPILED):
            monkeypatch.setattr(launcher, "WORTH_COMPILING", worth_compiling)
            results.append(function())
        return results

    return both


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype and a.shape == b.shape


def queries(symbols):
    proper, num_open = strings.nested(symbols)
    per_symbol = [query(symbols, 5) for query in (strings.count, strings.first, strings.last)]
    per_symbol.append(strings.frame(symbols))
    return [*per_symbol, *strings.matched(symbols, 3), *strings.matched(symbols, 5), proper, num_open * proper]


def symbols_of(lengths, width, num_kinds=7):
    symbols = torch.randint(3, 3 + num_kinds, (len(lengths), width), generator=torch.Generator().manual_seed(0))
    return symbols.masked_fill(torch.arange(width) >= lengths[:, None], PAD)


# Sizes around the blocks of 64 tokens and the tasks of 64 rows.
SIZES = [(0, 0), (0, 5), (3, 0), (1, 1), (5, 63), (64, 64), (65, 65), (130, 129), (70, 300)]


@pytest.mark.parametrize("batch, width", SIZES)
def test_queries(both, batch, width):
    lengths = torch.randint(0, width + 1, (batch,), generator=torch.Generator().manual_seed(1))
    for symbols in (symbols_of(lengths, width), symbols_of(lengths, width, 1), symbols_of(lengths, width, 2)):
        by_dtype = [symbols.to(dtype) for dtype in (torch.int64, torch.int32, torch.uint8, torch.int8)]
        for tensor in [*by_dtype, symbols.T.contiguous().T]:
            assert_equal(*both(lambda tensor=tensor: queries(tensor)))


def test_questions_by_hand(both):
    symbols = torch.tensor([[3, 5, 4, 6, 5, 6], [3, 5, 6, 4, PAD, PAD], [4, 3, PAD, PAD, PAD, PAD], [PAD] * 6])
    framed = [[0, 3, 5, 4, 6, 5, 6, 1], [0, 3, 5, 6, 4, 1, 2, 2], [0, 4, 3, 1, *[2] * 4], [0, 1, *[2] * 6]]
    expected = [
        [2, 1, 0, 0],  # how many of token 5
        [1, 1, 6, 6],
        [4, 1, -1, -1],
        framed,
        [True, True, False, True],  # 3 and 4
        [0, 0, 0, 0],
        [True, True, True, True],  # 5 and 6
        [0, 0, 0, 0],
        [False, True, False, True],
        [0, 0, 0, 0],
    ]
    for results in both(lambda: queries(symbols)):
        assert [result.tolist() for result in results] == expected


@pytest.mark.parametrize("batch, width", SIZES)
@pytest.mark.parametrize("special", [1, 4, 40])
def test_truncate_at_eos(both, batch, width, special):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 3 + 3 * special, (batch, 2 * width), generator=generator)
    before = tokens.clone()
    variants = [tokens[:, :width], tokens[:, ::2], tokens[:, width:].int(), tokens[:, :width].to(torch.uint8)]
    for rows in [*variants, tokens[:, :width].T.contiguous().T, tokens[:1, :width].expand(batch and 9, -1)]:
        (symbols, is_string), compiled = both(lambda rows=rows: strings.truncate_at_eos(rows))
        assert_equal((symbols, is_string), compiled)
        for row, cut, sound in zip(rows.tolist(), symbols.tolist(), is_string.tolist()):
            word = row[: row.index(1)] if 1 in row else row
            assert sound == (min(word, default=3) >= 3)
            assert cut == (word if sound else []) + [PAD] * (width - sound * len(word))
    assert torch.equal(tokens, before)


@every_language
def test_verdicts_of_kernels_are_the_naive_ones(monkeypatch, name):
    monkeypatch.setattr(launcher, "WORTH_COMPILING", COMPILED)
    grammar = small(name)

    @settings(max_examples=15, deadline=None, derandomize=True, database=None)
    @given(token_batches(name))
    def check(rows):
        assert verdicts(grammar, rows) == naive_verdicts(name, [text_or_none(name, row) for row in rows.tolist()])

    check()


@every_language
@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**40), max_length=st.sampled_from([4, 9, 32, 150]))
def test_a_seed_gives_the_same_words_in_both_implementations(name, seed, max_length):
    with pytest.MonkeyPatch.context() as monkeypatch:
        samples = []
        for worth_compiling in (TORCH, COMPILED):
            monkeypatch.setattr(launcher, "WORTH_COMPILING", worth_compiling)
            samples.append(small(name, max_length).sample(70, torch.Generator().manual_seed(seed)))
    assert torch.equal(*samples)


@pytest.mark.parametrize("kinds", [1, 3, 5])
@pytest.mark.parametrize("nest", [True, False])
def test_any_number_of_kinds_of_brackets(both, kinds, nest):
    keys = words.draw_keys(130, torch.Generator().manual_seed(0))
    targets = 2 * (torch.arange(130) % 21)
    drawn, compiled = both(lambda: words.brackets(targets, kinds, 40, nest, keys))
    assert torch.equal(drawn, compiled) and set(drawn.unique().tolist()) == {PAD, *range(3, 3 + 2 * kinds)}
    for kind in range(kinds):
        never_below, num_open = strings.matched(drawn, 3 + 2 * kind)
        assert never_below.all() and not num_open.any()
    assert not nest or strings.nested(drawn)[0].all()


def test_words_that_do_not_fit_are_refused():
    keys, threes = torch.zeros(2, dtype=torch.long), torch.full((2,), 3)
    for draw in (
        lambda length: words.runs([3, 4], torch.stack([threes, length - 3], 1), 8),
        lambda length: words.shuffled((3, 4), threes, length, 8, keys),
        lambda length: words.brackets(length, 2, 8, True, keys),
    ):
        assert draw(torch.tensor([8, 4])).shape == (2, 8)
        for wrong in (10, -2):
            with pytest.raises(ValueError, match=r"lengths must be from 0 to 8, not"):
                draw(torch.tensor([8, wrong]))


@pytest.mark.parametrize("worth_compiling", [TORCH, COMPILED])
def test_orders_of_letters_are_equally_probable(monkeypatch, worth_compiling):
    monkeypatch.setattr(launcher, "WORTH_COMPILING", worth_compiling)
    num = 21_000
    rows = words.shuffled(
        (3, 4), torch.full((num,), 2), torch.full((num,), 7), 8, words.draw_keys(num, torch.Generator().manual_seed(0))
    )
    counts = Counter(map(tuple, rows.tolist()))
    assert set(counts) == {(*order, PAD) for order in product((3, 4), repeat=7) if order.count(3) == 2}
    assert chisquare([*counts.values()]).pvalue > 1e-3


def test_random_bits_are_those_of_splitmix64():
    """The first outputs of the reference implementation for the seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    bits = words.random_bits(torch.tensor(1234567), torch.arange(4))
    assert bits.tolist() == [number >> 32 for number in expected]


def judged_and_drawn():
    grammar = get_grammar("L5", 256)
    rows = grammar.sample(1100, torch.Generator().manual_seed(0))
    verdicts = get_grammar("L6", 256).judge(rows[:, 1:].roll(1, 0))
    return [rows, *verdicts.values(), get_grammar("L1", 256).sample(1100, torch.Generator().manual_seed(0))]


def test_results_do_not_depend_on_the_number_of_threads():
    assert launcher.WORTH_COMPILING <= 1100 * 256
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 3):
            torch.set_num_threads(number)
            results.append(judged_and_drawn())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_equal(results[0], other)
    with ThreadPoolExecutor(4) as pool:
        for other in pool.map(lambda _: judged_and_drawn(), range(8)):
            assert_equal(results[0], other)


@pytest.mark.parametrize("name", ["L1", "L3", "L5", "L6"])
def test_large_batches_agree_with_the_naive_rules(name):
    """Batches large enough for the kernels. In every second word one symbol is replaced."""
    grammar = get_grammar(name, 256, **({"all_sequences": False} if name == "L3" else {}))
    generator = torch.Generator().manual_seed(0)
    rows = grammar.sample(1100, generator)[:, 1:]
    position = (torch.rand(550, generator=generator) * (rows[::2] > PAD).sum(1)).long()[:, None]
    symbol = torch.randint(3, grammar.num_tokens, (550, 1), generator=generator)
    rows[::2] = rows[::2].scatter(1, position, symbol)
    assert rows.numel() >= launcher.WORTH_COMPILING
    expected = [NAIVE[grammar.name].judge(text) for text in grammar.to_text(rows)]
    for rule, verdict in grammar.judge(rows).items():
        assert verdict.tolist() == [each[rule] for each in expected]
        assert rule == "rule_3" or 0 < verdict.sum() < 1100
