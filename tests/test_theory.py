"""Compare exact probabilities, chance levels and the oracle with enumeration and simulation."""

import itertools
import math
from collections import Counter

import pytest
import torch
from conftest import read_results

from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL, PAD
from rule_extrapolation.grammars import LANGUAGES, get_grammar, language_class
from rule_extrapolation.grammars.chance import chance_levels, exact_levels, sampled_levels
from rule_extrapolation.grammars.exact.acceptor import both
from rule_extrapolation.grammars.exact.likelihood import memorised_loss
from rule_extrapolation.grammars.judging import accuracies, judge_completions, stop_at_once
from rule_extrapolation.inference.decoding import Greedy
from rule_extrapolation.models.oracle import OracleLM

SMALL = 6
# Of these, all strings of SMALL symbols can be listed.
LISTED = [name for name in LANGUAGES if len(language_class(name).alphabet) <= 4]
WITH_ACCEPTORS = [name for name in LANGUAGES if get_grammar(name, max_length=16).has_acceptors]
OPTIONS = [
    *((name, {}) for name in LISTED),
    ("aNbN", {"all_sequences": False}),
    ("aNbN", {"only_even": True}),
    ("aNbN", {"only_odd": True}),
    ("aNbNcN", {"all_sequences": False}),
]
LANGUAGE_AND_OPTIONS = pytest.mark.parametrize(("name", "options"), OPTIONS)


def small(name, max_length=SMALL, **options):
    return get_grammar(name, max_length=max_length, test_prompt_length=4, **options)


def strings(num_symbols, length):
    """(num_symbols^length, length): all strings, with symbols numbered from 0."""
    every = list(itertools.product(range(num_symbols), repeat=length))
    return torch.tensor(every, dtype=torch.long).reshape(len(every), length)


def probabilities(grammar, max_length=SMALL):
    """The probability of every string up to this length."""
    found = {}
    for length in range(max_length + 1):
        words = strings(len(grammar.alphabet), length)
        found |= zip(map(tuple, words.tolist()), grammar.process.log_probability(words).exp().tolist())
    return found


class TestTrainingDistribution:
    @LANGUAGE_AND_OPTIONS
    @pytest.mark.parametrize("max_length", [SMALL, SMALL + 1])
    def test_probabilities_of_all_words_sum_to_one(self, name, options, max_length):
        grammar = small(name, max_length, **options)
        found = probabilities(grammar, max_length)
        assert math.fsum(found.values()) == pytest.approx(1, abs=1e-12)
        words = [word for word, probability in found.items() if probability > 0]
        symbols = [torch.tensor([word], dtype=torch.long) + FIRST_SYMBOL for word in words]
        assert all(grammar.judge(word)["grammatical"].all() for word in symbols)

    @LANGUAGE_AND_OPTIONS
    def test_words_are_drawn_with_their_probabilities(self, name, options):
        grammar, num = small(name, **options), 20_000
        rows, times = grammar.sample(num, torch.Generator().manual_seed(0)).unique(dim=0, return_counts=True)
        probability = grammar.log_probability(rows).exp()
        assert probability.sum() > 0.999  # every word that is not rare was drawn
        error = (probability * (1 - probability) / num).sqrt()
        assert ((times / num - probability).abs() <= 5 * error + 1e-9).all()

    @LANGUAGE_AND_OPTIONS
    def test_next_symbol_probabilities_are_the_conditional_ones(self, name, options):
        grammar = small(name, **options)
        found, mass = probabilities(grammar), Counter()
        for word, probability in found.items():
            for length in range(SMALL + 1):
                mass[word[:length]] += probability if length <= len(word) else 0
        for length in range(SMALL):
            prefixes = strings(len(grammar.alphabet), length)
            state = grammar.process.start(len(prefixes))
            for symbol in prefixes.unbind(1):
                state = grammar.process.read(state, symbol)
            for prefix, next_ in zip(map(tuple, prefixes.tolist()), grammar.process.probabilities(state).tolist()):
                outcomes = [found[prefix], *(mass[(*prefix, symbol)] for symbol in range(len(grammar.alphabet)))]
                assert next_ == pytest.approx([m / mass[prefix] if mass[prefix] else 0 for m in outcomes], abs=1e-12)

    @LANGUAGE_AND_OPTIONS
    def test_optimal_loss_is_the_entropy_of_all_words(self, name, options):
        grammar = small(name, **options)
        entropy = -math.fsum(p * math.log(p) for p in probabilities(grammar).values() if p)
        assert grammar.optimal_loss == pytest.approx(entropy / (SMALL + 1), abs=1e-12)

    @pytest.mark.parametrize("max_length", [32, 47])
    @pytest.mark.parametrize("name", LANGUAGES)
    def test_optimal_loss_is_the_mean_cost_of_drawn_words(self, name, max_length):
        grammar = get_grammar(name, max_length=max_length)
        costs = -grammar.log_probability(grammar.sample(4000, torch.Generator().manual_seed(1))) / (max_length + 1)
        assert abs(costs.mean() - grammar.optimal_loss) <= 4 * costs.std() / 4000**0.5 + 1e-12

    @pytest.mark.parametrize("name", LANGUAGES)
    def test_words_of_the_papers_length_have_finite_log_probabilities(self, name):
        grammar = get_grammar(name, max_length=256)
        rows = grammar.sample(64, torch.Generator().manual_seed(2))
        assert grammar.log_probability(rows).isfinite().all()
        assert 0 < grammar.optimal_loss < math.log(grammar.num_tokens)

    @pytest.mark.parametrize("name", ["L1", "L5", "L6", "abN"])
    def test_probabilities_that_underflow_have_finite_logarithms(self, name):
        grammar = get_grammar(name, max_length=1300)
        costs = -grammar.log_probability(grammar.sample(100, torch.Generator().manual_seed(3)))
        assert costs.isfinite().all()
        assert costs.max() > 745  # exp(-745) is the smallest float64
        if name not in ("L5", "L6"):  # which take half a minute
            assert abs(costs.mean() / 1301 - grammar.optimal_loss) <= 5 * costs.std() / 1301 / 10

    def test_other_strings_have_probability_zero(self):
        rows = get_grammar("L5", max_length=8).encode(["(]", "()[]", "((", ")", ""])
        with_sos = torch.nn.functional.pad(rows, (1, 0))
        assert (get_grammar("L5", max_length=8).log_probability(with_sos) == -torch.inf).all()

    def test_memorised_loss_is_the_entropy_of_the_rows(self):
        grammar = get_grammar("L5", max_length=8)
        rows = torch.cat([grammar.sample(1)] * 3 + [grammar.sample(40)])
        times = [int((rows == row).all(1).sum()) for row in rows]  # each row contributes as often as it occurs
        expected = -sum(math.log(n / len(rows)) for n in times) / len(rows) / 9
        assert memorised_loss(rows) == pytest.approx(expected)
        words = get_grammar("L3", max_length=32).all_words()
        assert memorised_loss(words) == pytest.approx(get_grammar("L3", max_length=32).optimal_loss)


def by_enumeration(grammar, prompts, budget):
    """The mean accuracies over all (|alphabet| + 1)^budget completions, which are equally probable.

    A rule is repaired by completions of the prompts that the rule's own method rejects.
    """
    drawn = strings(1 + len(grammar.alphabet), budget)
    tokens = torch.where(drawn == 0, EOS, drawn - 1 + FIRST_SYMBOL)
    every = torch.cat([prompts.repeat_interleave(len(tokens), 0), tokens.repeat(len(prompts), 1)], 1)
    verdicts = judge_completions(grammar, every, prompts.shape[1])
    kept = {name: (verdict.double(), torch.ones(len(every))) for name, verdict in verdicts.items()}
    for rule in grammar.repairable_rules:
        broken = ~getattr(grammar, rule)(every[:, 1 : prompts.shape[1]])
        if broken.any():
            kept[f"{rule}_repaired"] = (verdicts[rule].double(), broken.double())
    finished = verdicts["finished"].double()
    return {
        f"X/{path}{name}_accuracy": ((v * counted * among).sum() / (counted * among).sum()).item()
        for path, among in {"": torch.ones(len(every)), "finished/": finished}.items()
        for name, (v, counted) in kept.items()
    }


class TestChance:
    @pytest.mark.parametrize("name", [name for name in WITH_ACCEPTORS if name in LISTED])
    def test_acceptors_agree_with_the_rules(self, name):
        grammar = small(name)
        every_rule = both(*(grammar.acceptors[rule] for rule in grammar.rules))
        acceptors = {"grammatical": every_rule, **grammar.acceptors}
        for length in range(7):
            texts = ["".join(word) for word in itertools.product(grammar.alphabet, repeat=length)]
            verdicts = grammar.judge(grammar.encode(texts))
            assert set(acceptors) == set(verdicts)
            for rule, acceptor in acceptors.items():
                states = map(acceptor.after, texts)
                assert [s is not None and acceptor.accepts(s) for s in states] == verdicts[rule].tolist()

    @pytest.mark.parametrize("name", [name for name in WITH_ACCEPTORS if name in LISTED])
    def test_exact_levels_equal_enumeration(self, name):
        grammar = small(name)
        for budget in (1, 2, 4):
            for prompts in (prompts for prompts in grammar.prompts.values() if len(prompts)):
                expected = by_enumeration(grammar, prompts, budget)
                assert exact_levels(grammar, prompts, budget, "X") == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("name", WITH_ACCEPTORS)
    def test_exact_levels_agree_with_simulation(self, name):
        grammar = get_grammar(name, max_length=32)
        for prompts in (prompts for prompts in grammar.prompts.values() if len(prompts)):
            exact, sampled = (levels(grammar, prompts, 64, "X") for levels in (exact_levels, sampled_levels))
            assert exact.keys() == sampled.keys()
            for metric, p in exact.items():
                assert abs(p - sampled[metric]) <= 5 * math.sqrt(p * (1 - p) / 10_000) + 1e-6

    def test_a_language_without_acceptors_is_sampled(self):
        grammar, exact = get_grammar("L3", max_length=32), get_grammar("L3", max_length=32)
        grammar.acceptors = {}
        levels, expected = (chance_levels(g, lambda prompts: 64) for g in (grammar, exact))
        assert levels.keys() == expected.keys()
        assert levels == pytest.approx(expected, abs=0.03)
        assert levels != expected

    @pytest.mark.parametrize("name", WITH_ACCEPTORS)
    def test_an_unfinished_completion_is_not_a_word(self, name):
        """Without EOS nothing is grammatical, with it as often as all rules are kept at the first EOS."""
        grammar = small(name)
        prompts = grammar.prompts["ID"]
        [word] = grammar.to_text(grammar.sample(1, torch.Generator().manual_seed(0))[:, 1:])
        tokens = torch.nn.functional.pad(grammar.encode([word]), (1, 0))
        assert judge_completions(grammar, tokens, 1)["grammatical"].all()
        assert not judge_completions(grammar, tokens[:, :-1], 1)["grammatical"].any()
        levels = exact_levels(grammar, prompts, 4, "X")
        expected = levels["X/finished/grammatical_accuracy"] * levels["X/finished_accuracy"]
        assert levels["X/grammatical_accuracy"] == pytest.approx(expected, abs=1e-12)

    def test_a_random_completion_is_empty_if_its_first_token_is_eos(self):
        levels = chance_levels(get_grammar("L3", max_length=8), lambda prompts: 16)
        assert levels["OOD/empty_accuracy"] == pytest.approx(1 / 3, abs=1e-12)
        assert levels["OOD/finished/empty_accuracy"] == pytest.approx((1 / 3) / (1 - (2 / 3) ** 16), abs=1e-12)

    def test_prompts_that_keep_r1_are_left_out_of_repaired(self):
        """The only OOD prompt of one symbol is b. It needs an a more, which has the probability 1/3."""
        grammar = get_grammar("L3", max_length=8, test_prompt_length=1)
        levels = chance_levels(grammar, lambda prompts: 1)
        assert levels["OOD/rule_1_repaired_accuracy"] == levels["OOD/rule_1_accuracy"] == pytest.approx(1 / 3)
        assert levels["OOD/finished/rule_1_repaired_accuracy"] == 0
        assert "SOS/rule_1_repaired_accuracy" not in levels  # the empty string keeps R1

    def test_a_case_with_a_closed_form(self):
        """The probability that #a = #b at the first EOS is sum_n C(2n, n) 3^-(2n+1) = 1 / sqrt(9 - 4) = 1 / sqrt(5)."""
        levels = chance_levels(get_grammar("L3", max_length=8), lambda prompts: 400)
        assert levels["SOS/rule_1_accuracy"] == pytest.approx(5**-0.5, abs=1e-12)


class TestStopAtOnce:
    def test_anbn_by_hand(self):
        """Of the 2^8 prompts, a^8, a^7 b, ..., a^4 b^4 are ID. C(8, 4) = 70 have four a's; only a^4 b^4 is ID."""
        levels = stop_at_once(get_grammar("L3", max_length=8))
        shares = {"finished": 1, "empty": 1, "rule_1": 69 / 251, "rule_1_repaired": 0, "rule_2": 0}
        # All rows of 8 symbols that are ordered as in a^i b^j with i < j keep R2 too: b^8, a b^7, a^2 b^6, a^3 b^5.
        shares |= {"rule_2": 4 / 251, "rule_3": 1, "rule_2_completion": 1, "grammatical": 0}
        expected = {f"OOD/{part}{name}_accuracy": share for part in ("", "finished/") for name, share in shares.items()}
        assert {name: level for name, level in levels.items() if name.startswith("OOD")} == pytest.approx(expected)
        assert levels["ID/rule_1_accuracy"] == levels["ID/grammatical_accuracy"] == pytest.approx(1 / 5)
        assert levels["SOS/grammatical_accuracy"] == 1 and "SOS/rule_1_repaired_accuracy" not in levels

    def test_ban_by_hand(self):
        """Half of the strings of n symbols have an even number of a's. An empty completion does not begin with b."""
        levels = stop_at_once(get_grammar("L1", max_length=8))
        assert levels["OOD/rule_1_accuracy"] == 1 / 2
        assert levels["OOD/rule_2_completion_accuracy"] == levels["ID/rule_2_completion_accuracy"] == 0
        assert levels["ID/grammatical_accuracy"] == 1 / 2

    def test_brackets_by_hand(self):
        """The [ of every prompt stays open, and what follows the first two symbols is a word."""
        levels = stop_at_once(get_grammar("L5", max_length=8))
        assert levels["OOD/rule_1_accuracy"] == levels["OOD/rule_1_repaired_accuracy"] == 0
        assert levels["OOD/rule_2_completion_accuracy"] == 1

    @pytest.mark.parametrize("name", LANGUAGES)
    def test_its_names_are_those_of_chance(self, name):
        grammar = small(name)
        assert stop_at_once(grammar).keys() == chance_levels(grammar, lambda prompts: 4).keys()


class TestOracle:
    @pytest.mark.parametrize("name", LANGUAGES)
    def test_its_loss_is_optimal_and_its_completions_are_grammatical(self, name):
        grammar = get_grammar(name, max_length=32)
        oracle = OracleLM(grammar.num_tokens, grammar.process)
        rows = grammar.dataset(500, torch.Generator().manual_seed(3))
        losses = torch.nn.functional.cross_entropy(oracle(rows[:, :-1]), rows[:, 1:], reduction="none").sum(1)
        torch.testing.assert_close(losses.double(), -grammar.log_probability(rows), rtol=1e-5, atol=1e-4)
        id_prompts = grammar.prompts["ID"]
        if name == "aNbM":  # no training word begins with bbbbbbbb: each has an a
            id_prompts = id_prompts[id_prompts[:, 1] == FIRST_SYMBOL]
        for prompts in (id_prompts, grammar.prompts["SOS"]):
            completions = Greedy(64)(oracle, prompts)
            figures = accuracies(grammar, completions, prompts.shape[1], "ID")
            together = {
                name: figure for name, figure in figures.items() if "completion" not in name and "empty" not in name
            }
            assert set(together.values()) == {1.0}

    def test_it_restarts_after_a_prompt_that_is_not_a_prefix(self):
        """No word begins with b, so bba is read as a, which is followed by b or another a."""
        grammar = get_grammar("L3", max_length=8)
        oracle = OracleLM(grammar.num_tokens, grammar.process)
        tokens = torch.nn.functional.pad(grammar.encode(["bba", "a"])[:, :-1], (1, 0))
        broken, _ = oracle.prefill(tokens[:1])
        expected_logits, _ = oracle.prefill(torch.nn.functional.pad(grammar.encode(["a"])[:, :-1], (1, 0)))
        assert torch.equal(broken, expected_logits)
        expected = [0, 0, 0, 3 / 4, 1 / 4]  # a^n b^n for n = 1..4, equally probable
        torch.testing.assert_close(broken.softmax(1)[0], torch.tensor(expected), rtol=0, atol=1e-6)

    def test_only_pad_follows_the_end(self):
        grammar = get_grammar("L3", max_length=8)
        rows = grammar.all_words()
        probabilities = OracleLM(grammar.num_tokens, grammar.process)(rows).softmax(1)
        ended = (rows == EOS) | (rows == PAD)
        assert (probabilities[:, PAD][ended] == 1).all()
        assert (probabilities[:, PAD][~ended] < 1e-30).all()

    def test_its_run(self, train):
        results = read_results(train("model=oracle", "grammar=L5"))
        assert results["status"] == "finished"
        assert (results["num_parameters"], results["tested"]) == (0, None)
        assert results["test"]["Test/kl"] == pytest.approx(
            results["test"]["Test/loss"] - results["optimal_loss"], abs=1e-6
        )
        assert results["test"]["Test/ID/grammatical_accuracy"] == 1
        assert results["test"]["Test/loss"] == pytest.approx(results["optimal_loss_on_test_words"], abs=1e-6)
        assert results["memorised_loss"] > 0
        assert results["caveat"] == "restarts after prefixes that no training word has"
        assert results["chance_levels"]["OOD/rule_1_accuracy"] < 0.2
        assert results["stop_at_once"]["OOD/empty_accuracy"] == 1
        assert results["prompts"] == {"ID": 16, "OOD": 16, "SOS": 1}
