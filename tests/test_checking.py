"""A language whose parts disagree is refused, with the shortest counterexample."""

import pytest
import torch

from rule_extrapolation.cli.languages import main
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.grammars import LANGUAGES, Language, get_grammar
from rule_extrapolation.grammars.anbn import AnBn
from rule_extrapolation.grammars.checking import QUICK, THOROUGH, check_language
from rule_extrapolation.grammars.exact.acceptor import in_order, tally
from rule_extrapolation.grammars.exact.process import Automaton
from rule_extrapolation.grammars.grammar import PAD
from rule_extrapolation.grammars.letters import A, B, uniform_over
from rule_extrapolation.grammars.parentheses_and_brackets import ParenthesesAndBrackets
from rule_extrapolation.grammars.titles import rules_in_words
from rule_extrapolation.ops.strings import count


class OneBMore(AnBn):
    """Draws a^n b^(n+1) if there is room for it."""

    def sample_symbols(self, num, generator):
        words = super().sample_symbols(num, generator)
        is_first_pad = (words == PAD) & ((words == PAD).cumsum(1) == 1)
        return words.masked_fill(is_first_pad, B)


class AfterPad(AnBn):
    def sample_symbols(self, num, generator):
        return super().sample_symbols(num, generator).flip(1)


class TooLong(AnBn):
    def sample_symbols(self, num, generator):
        return torch.nn.functional.pad(super().sample_symbols(num, generator), (0, 1), value=PAD)


class AnotherToken(AnBn):
    def sample_symbols(self, num, generator):
        words = super().sample_symbols(num, generator)
        return torch.where(words == B, 9, words)


class NotNested(ParenthesesAndBrackets):
    """Draws ([)] besides the words that nest."""

    def sample_symbols(self, num, generator):
        words = super().sample_symbols(num, generator)
        words[0] = PAD
        words[0, :4] = self.encode(["([)]"])[0, :4]
        return words


class NotTheWordItself(AnBn):
    """A word is a prefix of itself."""

    def is_prefix_of_word(self, symbols):
        return super().is_prefix_of_word(symbols) & (count(symbols, B) < count(symbols, A))


class ClosesOnce(ParenthesesAndBrackets):
    """Denies ()[], a word that is never drawn, since drawn words close only at their end."""

    def is_prefix_of_word(self, symbols):
        early = self.extra_constraint(symbols[:, :2]) & (symbols[:, 2:3] != PAD).any(1)
        return super().is_prefix_of_word(symbols) & ~early


class WrongAcceptor(AnBn):
    acceptors = {**AnBn.acceptors, "rule_1": tally(a=1, b=-2)}


class ForgottenAcceptor(ParenthesesAndBrackets):
    """Its words must also nest."""

    acceptors = {rule: ParenthesesAndBrackets.acceptors[rule] for rule in ("rule_1", "rule_2")}


class UnknownAcceptor(AnBn):
    acceptors = {**AnBn.acceptors, "rule_4": in_order("ab")}


class NoMethod(AnBn):
    rules = {**AnBn.rules, "even_as": "even number of a's"}


class NamedAsAMetric(AnBn):
    rules = {**AnBn.rules, "empty": "no symbols"}

    def empty(self, symbols):
        return count(symbols, PAD) == symbols.shape[1]


class UnknownCompletionRule(AnBn):
    completion_rules = ("rule_4",)


class Impossible(AnBn):
    """Its process has no ab."""

    def make_process(self):
        return uniform_over(self.words(self.n[1:]), 2)


class TooMuchProbability(AnBn):
    """Its process also has aba."""

    def make_process(self):
        strings = self.encode(["ab", "aba", "aabb", "aaabbb", "aaaabbbb"])
        return uniform_over(torch.where(strings < A, PAD, strings), 2)


class SumsToNineTenths(AnBn):
    def make_process(self):
        class Process(Automaton):
            def probabilities(self, state):
                return super().probabilities(state) * 0.9

        process = uniform_over(self.words(self.n), 2)
        process.__class__ = Process
        return process


class MostlyShort(AnBn):
    """Draws ab half of the time, of four words."""

    def sample_symbols(self, num, generator):
        words = super().sample_symbols(num, generator)
        words[: num // 2] = self.words(torch.tensor([1]))
        return words


class NeverShort(AnBn):
    """Never draws ab, which each other word makes up for by a little."""

    def sample_symbols(self, num, generator):
        return self.words(self.n[1:][torch.randint(len(self.n) - 1, (num,), generator=generator)])


PROBLEMS = {
    OneBMore: "the training word 'abb' does not keep R1 (#a = #b)",
    AfterPad: "sample_symbols draws symbols after PAD; PAD must come last",
    TooLong: "sample_symbols draws 9 columns; max_length=8",
    AnotherToken: "sample_symbols draws the token 9, which is not in its alphabet",
    NotNested: "the training word '([)]' does not keep the extra constraint",
    NotTheWordItself: "is_prefix_of_word denies that '' begins a word, but 'ab' is a training word",
    ClosesOnce: "'()()' keeps all rules, but is_prefix_of_word denies that a word begins with it",
    WrongAcceptor: "the acceptor of R1 rejects 'ab', which keeps R1",
    ForgottenAcceptor: "the acceptor of all rules accepts '([)]', which breaks all rules",
    UnknownAcceptor: "acceptors names rule_4, which is not among its rules",
    NoMethod: "it has no method even_as, although rules names it",
    NamedAsAMetric: "empty is the name of a metric; give the rule another one",
    UnknownCompletionRule: "completion_rules names rule_4, which is not among its rules",
    Impossible: "the process gives the training word 'ab' the probability 0",
    TooMuchProbability: "the process gives 'aba' a positive probability, but it does not keep all rules",
    SumsToNineTenths: "the process's probabilities after '' sum to 0.9, not 1",
    MostlyShort: "the sampler draws 'ab' {} times in 400; it should be 100 by the process",
    NeverShort: "the process expects 75.0% of words to be 'aabb' or one of the other frequent words",
}


@pytest.mark.parametrize("language", PROBLEMS, ids=lambda language: language.__name__)
def test_a_broken_language_is_one_line_with_the_shortest_counterexample(language):
    with pytest.raises(ConfigError) as error:
        check_language(language(max_length=8, test_prompt_length=2))
    before, _, after = PROBLEMS[language].partition("{}")
    name, _, problem = str(error.value).partition(": is broken: ")
    assert name == f"grammar={language.name}"
    assert problem.startswith(before) and after in problem and "\n" not in problem


@pytest.mark.parametrize(("max_length", "size"), [(8, THOROUGH), (33, QUICK)])
@pytest.mark.parametrize("name", LANGUAGES)
def test_the_languages_are_sound(name, max_length, size):
    check_language(get_grammar(name, max_length=max_length, test_prompt_length=2), size)


@pytest.mark.parametrize("only", ["only_even", "only_odd"])
def test_options_do_not_break_a_language(only):
    check_language(get_grammar("aNbN", max_length=32, **{only: True}), THOROUGH)


def test_the_command_names_what_agrees(call):
    assert call(main, "check=aNbN,L5") == (
        0,
        "aNbN: rules, sampler, prefixes, acceptors, probabilities agree\n"
        "parentheses_and_brackets: rules, sampler, prefixes, acceptors, probabilities agree\n",
        "",
    )


def test_the_command_stops_at_the_first_broken_language(call, monkeypatch):
    monkeypatch.setitem(LANGUAGES, "wrong", Language("test_checking.WrongAcceptor"))
    status, out, error = call(main, "check=aNbM,wrong")
    assert (status, out.count("\n")) == (2, 1)
    assert error == "error: grammar=aNbN: is broken: the acceptor of R1 rejects 'ab', which keeps R1\n"


def test_the_command_suggests_a_name(call):
    status, out, error = call(main, "check=aNbX")
    assert (status, out) == (2, "") and error.startswith("error: check=aNbX: did you mean aNbN?")


def test_a_run_on_a_broken_language_does_not_begin(cli, tmp_path):
    arguments = ["logger=csv", "grammar._target_=test_checking.WrongAcceptor", "hydra.run.dir=broken"]
    status, out, error = cli(*arguments)
    assert (status, out) == (2, "")
    assert error == "error: grammar=aNbN: is broken: the acceptor of R1 rejects 'ab', which keeps R1\n"
    assert not (tmp_path / "broken").exists()


def test_rules_in_words():
    assert rules_in_words({"rule_2": "a's before b's", "even_length": "2 divides l"}) == (
        "R2: a's before b's   even length: 2 divides l"
    )
