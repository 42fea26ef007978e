"""Check a language against itself: its rules, sampler, prefixes, acceptors and exact probabilities must agree.

A language in which they do not agree trains and reports without complaint, but its figures mean nothing.
"""

from __future__ import annotations

from itertools import takewhile

import torch
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.random import generator
from rule_extrapolation.grammars.exact.acceptor import both
from rule_extrapolation.grammars.grammar import EOS, FIRST_SYMBOL, PAD, Grammar, all_strings, zero_based
from rule_extrapolation.grammars.titles import title
from rule_extrapolation.ops.strings import frame

RESERVED = ("finished", "empty", "grammatical")
"""The names of metrics that every language has."""
QUICK, THOROUGH = 400, 20_000
"""How many words are drawn, and at most how many short strings are judged."""
WALKED = 16
"""The number of words whose prefixes are checked, the shortest ones."""
EXPECTED = 10
"""Words that should be drawn this often are counted."""
SIGMAS = 7
"""The count of a word may differ from its expectation by this many standard deviations."""


def check_language(grammar: Grammar, size: int = QUICK) -> None:
    """Check that the parts of a language agree.

    - Every rule has a method, and no rule has the name of another metric.
    - Drawn words are strings of the alphabet and keep all rules.
    - The prefixes of drawn words, and all short words, can begin a word according to ``is_prefix_of_word``.
    - Short strings to which the process gives a positive probability are words.
    - Acceptors agree with the rules on all short strings.
    - The process gives each drawn word a positive probability, its next-symbol probabilities sum to 1, and words are
      drawn as often as it says.

    Args:
        size: how many words are drawn, and at most how many short strings are judged.

    Raises:
        ConfigError: naming the first part that disagrees, with the shortest counterexample.
    """
    check_names(grammar)
    symbols = grammar.sample_symbols(size, generator(0))
    check_symbols(grammar, symbols)
    rows = frame(symbols)
    check_words(grammar, rows)
    check_prefixes(grammar, shortest(rows))
    strings = short_strings(grammar, size)
    check_short_words(grammar, strings)
    check_acceptors(grammar, strings)
    if grammar.process is not None:
        check_next_symbols(grammar, shortest(rows))
        check_frequencies(grammar, rows)


def broken(grammar: Grammar, problem: str) -> ConfigError:
    return ConfigError("grammar", grammar.name, f"is broken: {problem}")


def check_names(grammar: Grammar) -> None:
    for rule in grammar.rules:
        if rule in RESERVED:
            raise broken(grammar, f"{rule} is the name of a metric; give the rule another one")
        if not callable(getattr(grammar, rule, None)):
            raise broken(grammar, f"it has no method {rule}, although rules names it")
    for listed in ("completion_rules", "repairable_rules"):
        for rule in getattr(grammar, listed):
            if rule not in grammar.rules:
                raise broken(grammar, f"{listed} names {rule}, which is not among its rules")
    for rule in grammar.acceptors:
        if rule not in (*grammar.rules, "grammatical"):
            raise broken(grammar, f"acceptors names {rule}, which is not among its rules")


def check_symbols(grammar: Grammar, symbols: Tensor) -> None:
    """(N, T) -> nothing, if each row is symbols of the alphabet, followed by PAD, and fits max_length."""
    if symbols.shape[1] > grammar.max_length:
        raise broken(grammar, f"sample_symbols draws {symbols.shape[1]} columns; max_length={grammar.max_length}")
    foreign = (symbols < PAD) | (symbols >= grammar.num_tokens)
    if foreign.any():
        raise broken(grammar, f"sample_symbols draws the token {symbols[foreign][0]}, which is not in its alphabet")
    if ((symbols[:, :-1] == PAD) & (symbols[:, 1:] != PAD)).any():
        raise broken(grammar, "sample_symbols draws symbols after PAD; PAD must come last")


def check_words(grammar: Grammar, rows: Tensor) -> None:
    """(N, T) framed words -> nothing, if they keep all rules."""
    symbols = rows[:, 1:]
    verdicts = grammar.judge(symbols)
    for rule, kept in verdicts.items():
        if not kept.all():
            word = first(grammar.to_text(symbols[~kept]))
            what = "the extra constraint" if rule == "grammatical" else f"{title(rule)} ({grammar.rules[rule]})"
            raise broken(grammar, f"the training word {word!r} does not keep {what}")


def check_prefixes(grammar: Grammar, rows: Tensor) -> None:
    """(N, T) framed words -> nothing, if all their prefixes can begin a word."""
    symbols = rows[:, 1:]
    length = torch.arange(symbols.shape[1])
    cut = torch.where(length < length[:, None, None], symbols, EOS).flatten(0, 1)  # every word up to every length
    possible = grammar.is_prefix(cut)
    if not possible.all():
        prefix = first(grammar.to_text(cut[~possible]))
        word = first([text for text in grammar.to_text(symbols) if text.startswith(prefix)])
        raise broken(
            grammar, f"is_prefix_of_word denies that {prefix!r} begins a word, but {word!r} is a training word"
        )


def check_short_words(grammar: Grammar, strings: Tensor) -> None:
    denied = grammar.judge(strings)["grammatical"] & ~grammar.is_prefix(strings)
    if denied.any():
        word = first(grammar.to_text(strings[denied]))
        raise broken(grammar, f"{word!r} keeps all rules, but is_prefix_of_word denies that a word begins with it")
    if grammar.process is not None:
        drawn = grammar.process.log_probability(zero_based(strings)).isfinite()
        wrong = drawn & ~grammar.judge(strings)["grammatical"]
        if wrong.any():
            string = first(grammar.to_text(strings[wrong]))
            raise broken(
                grammar, f"the process gives {string!r} a positive probability, but it does not keep all rules"
            )


def check_acceptors(grammar: Grammar, strings: Tensor) -> None:
    acceptors = dict(grammar.acceptors)
    if grammar.has_acceptors:
        acceptors.setdefault("grammatical", both(*(acceptors[rule] for rule in grammar.rules)))
    verdicts = grammar.judge(strings)
    texts = grammar.to_text(strings)
    for rule, acceptor in acceptors.items():
        for text, kept in zip(texts, verdicts[rule].tolist()):
            if acceptor.keeps(text) != kept:
                says, truth = ("rejects", "keeps") if kept else ("accepts", "breaks")
                what = "all rules" if rule == "grammatical" else title(rule)
                raise broken(grammar, f"the acceptor of {what} {says} {text!r}, which {truth} {what}")


def check_next_symbols(grammar: Grammar, rows: Tensor) -> None:
    """(N, T) framed words -> nothing, if the process gives each of their symbols a positive probability, and all next
    symbols and EOS together 1."""
    process, symbols = grammar.process, zero_based(rows[:, 1:])
    texts = grammar.to_text(rows[:, 1:])
    state, ended = process.start(len(rows)), torch.zeros(len(rows), dtype=torch.bool)
    for length, symbol in enumerate(symbols.unbind(1)):
        probabilities = process.probabilities(state)
        impossible = (probabilities.gather(1, 1 + symbol[:, None]).squeeze(1) <= 0) & ~ended
        if impossible.any():
            word = first(pick(texts, impossible))
            raise broken(grammar, f"the process gives the training word {word!r} the probability 0")
        total = probabilities.sum(1)
        wrong = ((total - 1).abs() > 1e-6) & ~ended
        if wrong.any():
            prefix = first(pick(texts, wrong))[:length]
            raise broken(grammar, f"the process's probabilities after {prefix!r} sum to {total[wrong][0]:.4g}, not 1")
        ended |= symbol < 0
        if ended.all():
            return
        state = process.read(state, symbol.clamp_min(0))


def check_frequencies(grammar: Grammar, rows: Tensor) -> None:
    """(N, T) drawn words -> nothing, if they are as frequent as the process says."""
    words, times = rows.unique(dim=0, return_counts=True)
    often = times > 1  # a word that is drawn once says nothing of its frequency
    words, times = trimmed(words[often]), times[often]
    if len(words) == 0:
        return
    log_probability = grammar.log_probability(words)
    probability, num, texts = log_probability.exp(), len(rows), grammar.to_text(words[:, 1:])
    if log_probability.isinf().any():  # a small probability may underflow, its logarithm does not
        word = first(pick(texts, log_probability.isinf()))
        raise broken(grammar, f"the process gives the training word {word!r} the probability 0")
    counted = probability * num >= EXPECTED
    deviation = (times - probability * num).abs()
    off = counted & (deviation > SIGMAS * (probability * (1 - probability) * num).sqrt() + 1e-6)
    if off.any():
        word = first(pick(texts, off))
        i = texts.index(word)
        expected = f"it should be {probability[i] * num:.0f} by the process"
        raise broken(grammar, f"the sampler draws {word!r} {times[i]} times in {num:,}; {expected}")
    together, drawn = probability[counted].sum().clamp_max(1), times[counted].sum()
    if (drawn - together * num).abs() > SIGMAS * (together * (1 - together) * num).sqrt() + 1e-6:
        word = first(pick(texts, counted))
        raise broken(
            grammar,
            f"the process expects {together:.1%} of words to be {word!r} or one of the other frequent words, "
            f"of which the sampler draws {drawn / num:.1%}",
        )


def short_strings(grammar: Grammar, most: int) -> Tensor:
    """(N, T) strings followed by EOS: all of the lengths that make at most ``most`` together, the shortest first."""
    sizes = len(grammar.alphabet)
    totals = (sum(sizes**k for k in range(length + 1)) for length in range(grammar.max_length + 1))
    longest = len(list(takewhile(lambda total: total <= most, totals))) - 1
    parts = [all_strings(grammar.alphabet, length) for length in range(longest + 1)]
    return torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1], 0, 0), value=EOS) for part in parts])


def shortest(rows: Tensor) -> Tensor:
    """The WALKED shortest of the (N, T) words, each once."""
    rows = rows.unique(dim=0)
    return trimmed(rows[(rows >= FIRST_SYMBOL).sum(1).argsort(stable=True)[:WALKED]])


def trimmed(rows: Tensor) -> Tensor:
    """(N, T) framed words without the columns in which all have ended."""
    return rows[:, : (rows != PAD).sum(1).max()] if len(rows) else rows


def first(texts: list[str]) -> str:
    """The shortest text; of several, the first in the alphabet's order."""
    return min(texts, key=lambda text: (len(text), text))


def pick(texts: list[str], mask: Tensor) -> list[str]:
    return [text for text, wanted in zip(texts, mask.tolist()) if wanted]
