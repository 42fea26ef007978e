"""A training distribution as a process that emits one symbol after the other, with its exact probabilities.

Of a prefix, a process remembers what the rest of the word depends on, as a row of integers, its state; everything works
on a batch of states. Symbols are counted from 0 here, and in a row of probabilities EOS comes before them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

NO_SYMBOL = -1


class Process(ABC):
    """A distribution over words."""

    num_symbols: int

    @abstractmethod
    def start(self, num: int) -> Tensor:
        """(num, S) states before the first symbol."""

    @abstractmethod
    def probabilities(self, state: Tensor) -> Tensor:
        """(B, S) -> (B, 1 + num_symbols) float64: of EOS and of each symbol next; zeros where no word begins so."""

    @abstractmethod
    def read(self, state: Tensor, symbol: Tensor) -> Tensor:
        """(B, S) states and (B,) symbols -> the states behind them."""

    @abstractmethod
    def entropy(self) -> float:
        """Of a word, in nats."""

    def log_probability(self, words: Tensor) -> Tensor:
        """(B, T) symbols, each row followed by NO_SYMBOL -> (B,) float64: ln P(word); -inf for what is no word."""
        state = self.start(len(words))
        total = torch.zeros(len(words), dtype=torch.float64)
        ended = torch.zeros(len(words), dtype=torch.bool)
        for symbol in torch.nn.functional.pad(words, (0, 1), value=NO_SYMBOL).unbind(1):
            probability = self.probabilities(state).gather(1, 1 + symbol[:, None]).squeeze(1)
            total += torch.where(ended, 0, probability.log())
            ended |= symbol == NO_SYMBOL
            state = self.read(state, symbol.clamp_min(0))
        return total


class Automaton(Process):
    """Finitely many prefixes; those that go on in the same way may share a node.

    Args:
        children: (N, num_symbols): the node behind each node and symbol, or -1. Node 0 is the empty prefix.
        log_end: (N,): ln of the probability of a word that ends there. Of long words it may be below all numbers.
        levels: how many nodes there are for each length of prefix; they come in this order.
    """

    def __init__(self, children: Tensor, log_end: Tensor, levels: list[int]):
        # A last node stands for what begins no word: -1 as an index.
        self.children = torch.nn.functional.pad(children, (0, 0, 0, 1), value=-1)
        log_end = torch.nn.functional.pad(log_end.double(), (0, 1), value=-torch.inf)
        self.num_symbols = children.shape[1]
        self.levels = torch.arange(len(children)).split(levels)
        log_mass = log_end.clone()  # of all words with a prefix, as far as they came by one way
        for level in reversed(self.levels):
            log_mass[level] = torch.cat([log_end[level, None], log_mass[self.children[level]]], 1).logsumexp(1)
        outcomes = torch.cat([log_end[:, None], log_mass[self.children]], 1)
        self.next = (outcomes - log_mass.where(log_mass > -torch.inf, 0)[:, None]).exp()

    @classmethod
    def of_words(cls, words: Tensor, num_symbols: int) -> Automaton:
        """From (N, T) different words, each row followed by NO_SYMBOL, all equally probable: a trie."""
        node, num_nodes = torch.zeros(len(words), dtype=torch.long), 1
        children, levels = [], [1]
        for column in words.T:
            edges = torch.full((levels[-1] * num_symbols,), -1)
            goes_on = column != NO_SYMBOL
            before = num_nodes - levels[-1]
            used, edge = ((node[goes_on] - before) * num_symbols + column[goes_on]).unique(return_inverse=True)
            edges[used] = num_nodes + torch.arange(len(used))
            node[goes_on] = num_nodes + edge
            children.append(edges.view(-1, num_symbols))
            levels.append(len(used))
            num_nodes += len(used)
        children.append(torch.full((levels[-1], num_symbols), -1))
        log_end = torch.full((num_nodes,), -torch.inf, dtype=torch.float64).index_fill(0, node, -math.log(len(words)))
        return cls(torch.cat(children), log_end, levels)

    @classmethod
    def of_counts(cls, log_probability: Tensor, first: int | None = None) -> Automaton:
        """Words of two symbols in any order.

        Args:
            log_probability: (T + 1, T + 1): entry (i, j) is that of each single word with i symbols 0 and j symbols 1.
            first: a symbol that all words begin with, not counted in i and j.
        """
        size = len(log_probability)
        length = torch.arange(size).repeat_interleave(torch.arange(1, size + 1))
        i = torch.arange(len(length)) - length * (length + 1) // 2
        behind = (length + 1) * (length + 2) // 2 + i  # one more symbol 1
        children = torch.stack([behind + 1, behind], 1).masked_fill(length[:, None] == size - 1, -1)
        log_end = log_probability[i, length - i]
        levels = list(range(1, size + 1))
        if first is not None:
            start = torch.full((1, 2), -1)
            start[0, first] = 1
            children = torch.cat([start, torch.where(children >= 0, children + 1, -1)])
            log_end, levels = torch.nn.functional.pad(log_end, (1, 0), value=-torch.inf), [1, *levels]
        return cls(children, log_end, levels)

    def start(self, num: int) -> Tensor:
        return torch.zeros(num, 1, dtype=torch.long)

    def probabilities(self, state: Tensor) -> Tensor:
        return self.next[state[:, 0]]

    def read(self, state: Tensor, symbol: Tensor) -> Tensor:
        return self.children[state[:, 0], symbol][:, None]

    def entropy(self) -> float:
        """Chain rule: of what comes next, summed over the nodes and how probable each is to be passed."""
        passed = torch.zeros(len(self.children), dtype=torch.float64)
        passed[0] = 1
        total = 0.0
        for level in self.levels:
            total += (passed[level] @ torch.special.entr(self.next[level]).sum(1)).item()
            onward = passed[level, None] * self.next[level, 1:]
            passed.index_add_(0, self.children[level].flatten().remainder(len(passed)), onward.flatten())
        return total
