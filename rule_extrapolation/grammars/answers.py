"""Languages of a sequence and its answer, such as "abba=a": state tracking and other classics of sequence modelling."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable
from functools import cache, cached_property
from itertools import cycle, islice, product
from typing import Any, ClassVar

import torch
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.random import generator as seeded
from rule_extrapolation.core.tokens import FIRST_SYMBOL, PAD
from rule_extrapolation.grammars.exact.acceptor import Acceptor, both
from rule_extrapolation.grammars.exact.answer_process import AnswerProcess, Transitions
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.ops.strings import count, first

State = Hashable

MAX_SEQUENCES = 256
"""The maximum number of prompts in a set."""
PROMPT_SEED = 2024
"""Prompts are drawn with this seed, so that they are the same in every run."""


class AnswerGrammar(Grammar):
    """A sequence of inputs, then =, then the answer to the sequence, which is one of the inputs.

    R1: the last input is the answer to the inputs before it. Every = is ignored.
    R2: one =, with at least one input before it and exactly one after it.

    A subclass sets ``name``, ``level``, ``inputs`` and ``answer_rule``, and defines an automaton that reads the
    sequence: ``start``, ``read`` and ``answer``.

    Training words: a number of inputs, drawn uniformly from 1, 1 + ``step``, ... up to max_length - 2; each input drawn
    uniformly from those that ``choices`` allows at its place; then = and the answer.

    Prompts: the ID prompts are sequences of n inputs: all that can begin a word, or MAX_SEQUENCES of them if there are
    more. The OOD prompts are the same sequences with an = after the first input.
    """

    inputs: ClassVar[str]
    """The symbols other than =."""
    answer_rule: ClassVar[str]
    """R1 in words."""
    step: ClassVar[int] = 1
    """The difference between the possible numbers of inputs in training words."""
    start: ClassVar[State] = None
    """The state of the empty sequence, which has no answer."""
    is_finite: ClassVar[bool] = True
    """Whether the automaton has finitely many states."""

    repairable_rules = ("rule_1",)
    min_max_length = 4

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "inputs"):
            cls.alphabet = cls.inputs + "="
            cls.rules = {"rule_1": cls.answer_rule, "rule_2": "one =, before the last symbol"}
            cls.acceptors = {"rule_1": answers(cls), "rule_2": FORM, "grammatical": answers_in_form(cls)}

    # The automaton

    @classmethod
    @abstractmethod
    def read(cls, state: State, symbol: str) -> State | None:
        """The state after one more input. The result None means that no continuation has an answer."""

    @classmethod
    @abstractmethod
    def answer(cls, state: State) -> str | None:
        """The answer to a sequence in this state, or None if there is none."""

    @classmethod
    def choices(cls) -> list[str]:
        """The inputs that may come at each place of a training word. The list is repeated."""
        return [cls.inputs]

    @classmethod
    def merge_equivalent(cls, state: tuple[State, str | None]) -> Any:
        """See ``Acceptor``. The state of R1 is that of the inputs before the last one, and the last input."""
        return state

    @classmethod
    @cache
    def transitions(cls, num_inputs: int | None = None) -> Transitions:
        """The automaton as tensors.

        Args:
            num_inputs: for an infinite automaton, the maximum number of inputs in a sequence.
        """
        numbers, depth = {cls.start: 0}, {cls.start: 0}
        rows: list[list[int | None]] = []
        for state in (queue := [cls.start]):
            if num_inputs is not None and depth[state] == num_inputs:
                break  # the queue is in the order of depth
            after = [cls.read(state, symbol) for symbol in cls.inputs]
            for next_state in after:
                if next_state is not None and next_state not in numbers:
                    numbers[next_state], depth[next_state] = len(numbers), depth[state] + 1
                    queue.append(next_state)
            rows.append([None if next_state is None else numbers[next_state] for next_state in after])
        dead = len(numbers)
        rows += [[None] * len(cls.inputs)] * (dead + 1 - len(rows))
        next_ = torch.tensor([[dead if number is None else number for number in row] for row in rows])
        symbols = [*map(cls.answer, numbers), None]
        return Transitions(next_, torch.tensor([-1 if s is None else cls.inputs.index(s) for s in symbols]))

    def states(self, symbols: Tensor) -> tuple[Tensor, Transitions]:
        """(B, T) symbols followed by PAD -> (B, T + 1) the state after each number of symbols, = ignored, and what the
        states mean."""
        transitions = self.transitions(None if self.is_finite else symbols.shape[1])
        stay = torch.arange(len(transitions.next))[:, None]
        table = torch.cat([stay, transitions.next, stay], 1).to(symbols.device)  # PAD, the inputs, and =
        state = symbols.new_zeros(len(symbols), dtype=torch.long)
        states = [state]
        for column in symbols.unbind(1):
            state = table[state, column.long() - PAD]
            states.append(state)
        return torch.stack(states, 1), Transitions(*(part.to(symbols.device) for part in transitions))

    # Rules

    @property
    def equals(self) -> int:
        """The token of =."""
        return FIRST_SYMBOL + len(self.inputs)

    def rule_1(self, symbols: Tensor) -> Tensor:
        states, transitions = self.states(symbols)
        place = torch.arange(1, symbols.shape[1] + 1, device=symbols.device)
        is_input = (symbols >= FIRST_SYMBOL) & (symbols != self.equals)
        last = torch.nn.functional.pad(place * is_input, (1, 0)).amax(1, keepdim=True)  # 0 if there is no input
        before = states.gather(1, (last - 1).clamp_min(0)).squeeze(1)
        symbol = torch.nn.functional.pad(symbols, (1, 0), value=PAD).gather(1, last).squeeze(1)
        return (last.squeeze(1) > 0) & (transitions.answer[before] == symbol.long() - FIRST_SYMBOL)

    def rule_2(self, symbols: Tensor) -> Tensor:
        before = first(symbols, self.equals)
        return (count(symbols, self.equals) == 1) & (before > 0) & (first(symbols, PAD) == before + 2)

    def is_prefix_of_word(self, symbols: Tensor) -> Tensor:
        states, transitions = self.states(symbols)
        length, before = (first(symbols, token).long() for token in (PAD, self.equals))
        alive = states[:, -1] < len(transitions.answer) - 1
        answer = transitions.answer[states.gather(1, before[:, None]).squeeze(1)]
        after = torch.nn.functional.pad(symbols, (0, 2), value=PAD).gather(1, before[:, None] + 1).squeeze(1).long()
        answered = (answer >= 0) & ((after == PAD) | (after - FIRST_SYMBOL == answer)) & (length <= before + 2)
        return torch.where(before < length, answered, alive)

    # Words

    @cached_property
    def lengths(self) -> Tensor:
        """The possible numbers of inputs in training words."""
        return torch.arange(1, self.max_length - 1, self.step)

    def draw_inputs(self, num: int, length: int, generator: torch.Generator | None) -> Tensor:
        """(num, length) int8 tokens of inputs."""
        choices = self.choices()
        tokens = torch.zeros(len(choices), max(map(len, choices)), dtype=torch.int8)
        for row, allowed in zip(tokens, choices):
            row[: len(allowed)] = torch.tensor([FIRST_SYMBOL + self.inputs.index(symbol) for symbol in allowed])
        place = torch.arange(length) % len(choices)
        sizes = torch.tensor([len(allowed) for allowed in choices])[place]
        drawn = torch.rand(num, length, generator=generator, dtype=torch.float64) * sizes
        return tokens[place, drawn.long()]

    def sample_symbols(self, num: int, generator: torch.Generator | None) -> Tensor:
        length = self.lengths[torch.randint(len(self.lengths), (num,), generator=generator)]
        longest = self.max_length - 2
        inputs = self.draw_inputs(num, longest, generator)
        symbols = inputs.masked_fill(torch.arange(longest) >= length[:, None], PAD)
        states, transitions = self.states(symbols)
        answer = (transitions.answer[states[:, -1]] + FIRST_SYMBOL).to(torch.int8)
        symbols = torch.nn.functional.pad(symbols, (0, 2), value=PAD)
        symbols[torch.arange(num), length] = self.equals
        symbols[torch.arange(num), length + 1] = answer
        return symbols

    def make_process(self) -> AnswerProcess:
        allowed = [[symbol in place for symbol in self.inputs] for place in self.choices()]
        transitions = self.transitions(None if self.is_finite else self.max_length)
        return AnswerProcess(transitions, self.lengths, torch.tensor(allowed))

    # Prompts

    def num_given_symbols(self, length: int) -> int:
        return length - 1  # all but the answer

    def check_prompt_length(self, n: int) -> None:
        if not 2 <= n <= self.max_length - 2:
            raise ConfigError(
                "test_prompt_length",
                n,
                f"must be from 2 to {self.max_length - 2}: an OOD prompt has n inputs and an =, and needs an answer "
                f"within max_length={self.max_length}",
            )

    def id_and_ood_prompts(self) -> tuple[Tensor, Tensor]:
        n = self.test_prompt_length
        choices = [*islice(cycle(self.choices()), n)]
        if math.prod(map(len, choices)) <= MAX_SEQUENCES:
            sequences = ["".join(symbols) for symbols in product(*choices)]
        else:
            drawn = self.draw_inputs(8 * MAX_SEQUENCES, n, seeded(PROMPT_SEED))
            sequences = [*dict.fromkeys(self.to_text(drawn))][:MAX_SEQUENCES]
        broken = [sequence[0] + "=" + sequence[1:] for sequence in sequences]
        return self.encode(sequences)[:, :-1], self.encode(broken)[:, :-1]


# Acceptors

BEGIN, INPUTS, EQUALS, ENDED = range(4)


def read_form(stage: int, symbol: str) -> int | None:
    if symbol == "=":
        return EQUALS if stage == INPUTS else None
    return {BEGIN: INPUTS, INPUTS: INPUTS, EQUALS: ENDED, ENDED: None}[stage]


FORM = Acceptor(BEGIN, read_form, lambda stage: stage == ENDED)
"""R2."""


def answers(grammar: type[AnswerGrammar]) -> Acceptor:
    """R1. The state is that of the inputs before the last one, and the last input."""

    def read(state: tuple[State, str | None], symbol: str) -> tuple[State, str] | None:
        if symbol == "=":
            return state
        before, last = state
        if last is not None:
            before = grammar.read(before, last)
            if before is None:
                return None
        return before, symbol

    def accepts(state: tuple[State, str | None]) -> bool:
        before, last = state
        return last is not None and grammar.answer(before) == last

    return Acceptor((grammar.start, None), read, accepts, lambda state: grammar.merge_equivalent(state))


def answers_in_form(grammar: type[AnswerGrammar]) -> Acceptor:
    """R1 and R2."""
    answer = answers(grammar)
    start, read, accepts, _ = both(answer, FORM)
    return Acceptor(start, read, accepts, lambda state: (answer.merge_equivalent(state[0]), state[1]))
