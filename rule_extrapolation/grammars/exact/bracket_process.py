from __future__ import annotations

import math

import torch
from torch import Tensor

from rule_extrapolation.grammars.exact.process import Process

ALIVE, OPENED, LOG_RATIO, DEPTHS = range(4)
"""Columns of a state: whether the prefix is possible, o and ln r (see BracketProcess), then the open brackets of each
kind."""
NEGLIGIBLE = 1e-18
"""The entropy leaves out prefixes of a lower total probability."""


class BracketProcess(Process):
    """The distribution of ``grammars.dyck.sample_brackets`` with target lengths 2l, l ~ U{1..max_pairs}.

    A word opens at most l brackets. Each symbol is drawn uniformly from the allowed ones: until the l-th bracket opens,
    the word may open and close brackets (it is free); from then on it may only close them (it is forced).

    The target is hidden, so the probabilities need its posterior. Given a prefix that has opened o brackets, all
    targets l > o are equally probable, because under each of them the prefix made the same free choices. The target
    l = o is more probable than any one of those by a factor r >= 1, because under it each bracket closed since the o-th
    opened was chosen from fewer alternatives.

    Symbol 2k opens a bracket of kind k, and symbol 2k + 1 closes one.

    Args:
        kinds: the number of kinds of brackets.
        max_pairs: the maximum l.
        nest: only the bracket opened last may close, and a word ends when no bracket is open. If false, any open
            bracket may close, and a word ends at its target length.
        mixed: if false, a word contains only the kind it begins with.
    """

    def __init__(self, kinds: int, max_pairs: int, nest: bool, mixed: bool = True):
        self.kinds, self.max_pairs, self.nest, self.mixed = kinds, max_pairs, nest, mixed
        self.num_symbols = 2 * kinds
        self.stack = DEPTHS + kinds  # its first column; with nest, the kinds of the open brackets

    def start(self, num: int) -> Tensor:
        state = torch.zeros(num, self.stack + (self.max_pairs if self.nest else 0), dtype=torch.float64)
        state[:, ALIVE] = 1
        state[:, LOG_RATIO] = -torch.inf  # no target is 0
        return state

    def choices(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Two (B, kinds) bool: which kinds may open while the word is free, and which may close."""
        depths = state[:, DEPTHS : self.stack]
        may_close = depths > 0
        if self.nest:
            top = (depths.sum(1).long() - 1).clamp_min(0)
            kind = state[:, self.stack :].gather(1, top[:, None]).long()
            may_close = may_close & (torch.arange(self.kinds) == kind)
        if self.mixed:
            return torch.ones_like(may_close), may_close
        return may_close | (state[:, OPENED, None] == 0), may_close

    def probabilities(self, state: Tensor) -> Tensor:
        may_open, may_close = self.choices(state)
        num_close = may_close.sum(1)
        # Posterior probabilities of l = o (forced) and of l > o (free).
        forced = torch.sigmoid(state[:, LOG_RATIO] - (self.max_pairs - state[:, OPENED]).log())
        free = 1 - forced
        closed = (num_close == 0) & (state[:, OPENED] > 0)
        if self.nest:
            ends, free = closed.double(), ~closed * free
        else:
            ends = closed * forced
        each_free = (free / (may_open.sum(1) + num_close).clamp_min(1))[:, None]
        each_forced = (forced / num_close.clamp_min(1))[:, None]
        brackets = torch.stack([may_open * each_free, may_close * (each_free + each_forced)], 2).flatten(1)
        return torch.cat([ends[:, None], brackets], 1) * state[:, ALIVE, None]

    def read(self, state: Tensor, symbol: Tensor) -> Tensor:
        row, kind, opens = torch.arange(len(state)), symbol // 2, symbol % 2 == 0
        may_open, may_close = self.choices(state)
        num_close = may_close.sum(1)
        possible = self.probabilities(state)[row, 1 + symbol] > 0
        after = state.clone()
        after[:, ALIVE] *= possible
        after[:, OPENED] += opens
        log_odds = (may_open.sum(1) + num_close).double().log() - num_close.clamp_min(1).double().log()
        after[:, LOG_RATIO] = torch.where(opens, 0.0, state[:, LOG_RATIO] + log_odds)
        after[row, DEPTHS + kind] += torch.where(opens, 1.0, -1.0)
        if self.nest:
            depth = state[:, DEPTHS : self.stack].sum(1).long().clamp(0, self.max_pairs - 1)
            after[row, self.stack + depth] = torch.where(opens, kind, after[row, self.stack + depth]).double()
        return torch.where(possible[:, None], after, state * (torch.arange(state.shape[1]) != ALIVE))

    def entropy(self) -> float:
        return self.entropy_if_nested() if self.nest else self.entropy_if_counted()

    def entropy_if_nested(self) -> float:
        """By the chain rule over prefixes, grouped by o, the brackets closed since the o-th opened, and the depth."""
        kinds = self.kinds if self.mixed else 1
        total = math.log(self.kinds)
        reached = torch.zeros(self.max_pairs + 2, dtype=torch.float64)  # probability of each depth
        reached[1] = 1
        for opened in range(1, self.max_pairs + 1):
            after_opening = torch.zeros_like(reached)
            for closed in range(opened):
                reached[0] = 0  # these words have ended
                unfinished = reached.sum().item()
                if unfinished < NEGLIGIBLE:
                    break
                opens = free_share(closed * math.log(kinds + 1), self.max_pairs - opened) / (kinds + 1)
                closes = 1 - kinds * opens
                per_step = -closes * math.log(closes) - (kinds * opens * math.log(opens) if opens else 0)
                total += per_step * unfinished
                after_opening[1:] += kinds * opens * reached[:-1]
                reached = torch.nn.functional.pad(reached[1:] * closes, (0, 1))
            reached = after_opening
        return total

    def entropy_if_counted(self) -> float:
        """A word's length reveals its target, so that the entropy is ln(max_pairs) for l plus, averaged over l, the
        expected sum of ln(number of choices) over the steps of a word."""
        size = self.max_pairs + 2
        depth = torch.arange(size)
        depths = torch.stack(torch.meshgrid([depth] * self.kinds, indexing="ij"))  # an axis for each kind
        total_depth, num_open = depths.sum(0), (depths > 0).sum(0).double()
        # By depths: the expected sum over the remaining steps once the word is forced to close.
        forced_cost = torch.zeros(total_depth.shape, dtype=torch.float64)
        for level in range(1, size):
            closed = sum(forced_cost.roll(1, kind) * (depths[kind] > 0) for kind in range(self.kinds))
            forced_cost = torch.where(total_depth == level, num_open.log() + closed / num_open, forced_cost)
        # By o: the expected cost of the free steps taken after o openings, and of the forced steps after the o-th
        # opening.
        free_cost, remaining_cost = torch.zeros(2, 2 * size * self.kinds, dtype=torch.float64)
        reached = torch.zeros_like(forced_cost)  # by depths: their probability if every step is free
        reached.view(-1)[0] = 1
        for step in range(2 * self.max_pairs):
            each = reached / (self.kinds + num_open)
            opened = ((step + total_depth) // 2).flatten()
            remaining = sum(forced_cost.roll(-1, kind) for kind in range(self.kinds))
            free_cost.index_add_(0, opened, (reached * (self.kinds + num_open).log()).flatten())
            remaining_cost.index_add_(0, opened + 1, (each * remaining).flatten())
            reached = sum(
                (each * (depth < size - 1).view([-1] + [1] * (self.kinds - 1 - kind))).roll(1, kind)
                + (each * (depths[kind] > 0)).roll(-1, kind)
                for kind in range(self.kinds)
            )
        targets = torch.arange(1, self.max_pairs + 1)
        return math.log(self.max_pairs) + (free_cost.cumsum(0)[targets - 1] + remaining_cost[targets]).mean().item()


def free_share(log_ratio: float, num_longer: int) -> float:
    """The posterior probability that the word is free.

    Args:
        log_ratio: ln r.
        num_longer: how many targets l > o there are.
    """
    return num_longer / (num_longer + math.exp(min(log_ratio, 600))) if num_longer else 0.0
