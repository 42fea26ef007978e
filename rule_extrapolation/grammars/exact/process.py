"""Training distributions as processes that emit one symbol after another, with exact probabilities.

A process summarises a prefix by its state, a row of numbers on which the rest of the word depends. All methods take
batches of states. Symbols are numbered from 0 here; in a row of probabilities, EOS comes first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

NO_SYMBOL = -1
"""Follows the last symbol of a row."""


class Process(ABC):
    """A distribution over words."""

    num_symbols: int
    """Size of the alphabet."""

    @abstractmethod
    def start(self, num: int) -> Tensor:
        """(num, S) states of the empty prefix."""

    @abstractmethod
    def probabilities(self, state: Tensor) -> Tensor:
        """(B, S) states -> (B, 1 + num_symbols) float64: probabilities of EOS and of each symbol; all 0 if no word
        fits."""

    @abstractmethod
    def read(self, state: Tensor, symbol: Tensor) -> Tensor:
        """(B, S) states and (B,) symbols -> (B, S) states after these symbols."""

    @abstractmethod
    def entropy(self) -> float:
        """The entropy of a word in nats."""

    def log_probability(self, words: Tensor) -> Tensor:
        """(B, T) symbols, followed by NO_SYMBOL -> (B,) float64: ln P(word), -inf if training has no such word."""
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
    """A distribution over finitely many words, as an automaton. Prefixes with the same continuations may share a node.

    Args:
        children: (N, num_symbols) the node that each node and symbol lead to, or -1. Node 0 is the empty prefix.
        log_end: (N,) the log-probability of each single word that ends at the node. Logarithms, because the probability
            of a long word may underflow.
        levels: the number of nodes for each length of prefix. Nodes are ordered by this length.
    """

    def __init__(self, children: Tensor, log_end: Tensor, levels: list[int]):
        # The last node, index -1, stands for the strings that are not a prefix of any word.
        self.children = torch.nn.functional.pad(children, (0, 0, 0, 1), value=-1)
        log_end = torch.nn.functional.pad(log_end.double(), (0, 1), value=-torch.inf)
        self.num_symbols = children.shape[1]
        self.levels = torch.arange(len(children)).split(levels)
        log_mass = log_end.clone()  # of all words that continue a single prefix of the node
        for level in reversed(self.levels):
            log_mass[level] = torch.cat([log_end[level, None], log_mass[self.children[level]]], 1).logsumexp(1)
        outcomes = torch.cat([log_end[:, None], log_mass[self.children]], 1)
        self.next = (outcomes - log_mass.where(log_mass > -torch.inf, 0)[:, None]).exp()

    @classmethod
    def from_words(cls, words: Tensor, num_symbols: int) -> Automaton:
        """A trie of equally probable words.

        Args:
            words: (N, T) distinct words, each followed by NO_SYMBOL.
        """
        node, num_nodes = torch.zeros(len(words), dtype=torch.long), 1
        children, levels = [], [1]
        for column in words.T:
            edges = torch.full((levels[-1] * num_symbols,), -1)
            continues = column != NO_SYMBOL
            before = num_nodes - levels[-1]
            used, edge = ((node[continues] - before) * num_symbols + column[continues]).unique(return_inverse=True)
            edges[used] = num_nodes + torch.arange(len(used))
            node[continues] = num_nodes + edge
            children.append(edges.view(-1, num_symbols))
            levels.append(len(used))
            num_nodes += len(used)
        children.append(torch.full((levels[-1], num_symbols), -1))
        log_end = torch.full((num_nodes,), -torch.inf, dtype=torch.float64).index_fill(0, node, -math.log(len(words)))
        return cls(torch.cat(children), log_end, levels)

    @classmethod
    def from_counts(cls, log_probability: Tensor, first: int | None = None) -> Automaton:
        """Words of two symbols whose probability depends only on how often each occurs.

        Args:
            log_probability: (T + 1, T + 1) entry (i, j) is the log-probability of each single word with i symbols 0 and
                j symbols 1.
            first: a symbol that precedes every word and is not counted in i and j.
        """
        size = len(log_probability)
        length = torch.arange(size).repeat_interleave(torch.arange(1, size + 1))
        i = torch.arange(len(length)) - length * (length + 1) // 2
        after_1 = (length + 1) * (length + 2) // 2 + i  # the node after symbol 1; the one after symbol 0 is next to it
        children = torch.stack([after_1 + 1, after_1], 1).masked_fill(length[:, None] == size - 1, -1)
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
        """By the chain rule: the entropy of the next symbol at each node, times the probability of reaching the
        node."""
        reached = torch.zeros(len(self.children), dtype=torch.float64)
        reached[0] = 1
        total = 0.0
        for level in self.levels:
            total += (reached[level] @ torch.special.entr(self.next[level]).sum(1)).item()
            onward = reached[level, None] * self.next[level, 1:]
            reached.index_add_(0, self.children[level].flatten().remainder(len(reached)), onward.flatten())
        return total
