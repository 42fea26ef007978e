from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rule_extrapolation.grammars.exact.process import Process

PLACE, NODE, STAGE = range(3)
"""Columns of a state: the number of inputs read, the state of the sequence, and the stage."""
INPUTS, EQUALS, ENDED, IMPOSSIBLE = range(4)
"""Stages: inputs only so far, just after =, after the answer, and not a prefix of any word."""


class Transitions(NamedTuple):
    """How the state of a sequence changes with each input, and which input is the answer.

    State 0 is that of the empty sequence, and the last one that of sequences which no continuation gives an answer.

    Args:
        next: (N, K) long, the state after each state and input.
        answer: (N,) long, the answer in each state, or -1 if there is none.
    """

    next: Tensor
    answer: Tensor


class AnswerProcess(Process):
    """The distribution of sequences with their answers, in which inputs are independent of each other.

    Symbols are the K inputs, then =.

    Args:
        transitions: how the answer depends on the inputs.
        lengths: the numbers of inputs, each equally probable, in increasing order.
        choices: (P, K) bool, which inputs may come at the places i with i modulo P = 0, ..., P - 1, equally probable.
    """

    def __init__(self, transitions: Transitions, lengths: Tensor, choices: Tensor):
        self.transitions, self.lengths, self.choices = transitions, lengths, choices
        self.num_symbols = choices.shape[1] + 1
        longest = int(lengths[-1])
        ends = torch.zeros(longest + 2, dtype=torch.float64).index_fill(0, lengths, 1)
        # Given that a sequence has at least t inputs, the probability that it has no more.
        self.stop = ends / ends.flip(0).cumsum(0).flip(0).clamp_min(1)

    def start(self, num: int) -> Tensor:
        return torch.zeros(num, 3, dtype=torch.long)

    def probabilities(self, state: Tensor) -> Tensor:
        place, node, stage = state.unbind(1)
        stop = self.stop[place.clamp_max(len(self.stop) - 1)]
        choices = self.choices[place % len(self.choices)].double()
        reads, answers = stage == INPUTS, stage == EQUALS
        result = torch.zeros(len(state), 1 + self.num_symbols, dtype=torch.float64)
        result[:, 0] = (stage == ENDED).double()
        result[:, 1:-1] = (reads * (1 - stop))[:, None] * choices / choices.sum(1, keepdim=True)
        result[:, -1] = reads * stop
        answer = self.transitions.answer[node]
        result[answers, 1 + answer[answers]] = 1
        return result

    def read(self, state: Tensor, symbol: Tensor) -> Tensor:
        row = torch.arange(len(state))
        possible = self.probabilities(state)[row, 1 + symbol] > 0
        place, node, stage = state.unbind(1)
        is_input = (stage == INPUTS) & (symbol < self.num_symbols - 1)
        after = torch.where(is_input, self.transitions.next[node, symbol.clamp_max(self.num_symbols - 2)], node)
        stage = torch.where(is_input, INPUTS, stage + 1)
        return torch.stack([place + is_input, after, torch.where(possible, stage, IMPOSSIBLE)], 1)

    def entropy(self) -> float:
        """The entropy of the number of inputs, and of each input."""
        per_input = self.choices.sum(1).double().log()[torch.arange(int(self.lengths[-1])) % len(self.choices)]
        return math.log(len(self.lengths)) + per_input.cumsum(0)[self.lengths - 1].mean().item()
