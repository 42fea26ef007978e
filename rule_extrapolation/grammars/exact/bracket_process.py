from __future__ import annotations

import math

import torch
from torch import Tensor

from rule_extrapolation.grammars.exact.process import Process

ALIVE, OPENED, LOG_RATIO, DEPTHS = range(4)
"""The first columns of a state: whether a word begins so, o and ln r; then how many of each kind are open."""
NEGLIGIBLE = 1e-18


class BracketProcess(Process):
    """The exact probabilities of ``grammars.dyck.sample_brackets`` with targets 2l, l ~ U{1..most}.

    A word opens at most l brackets. At each step it takes evenly one of those that it may: it is free to open and to
    close until the l-th has opened, and is forced to close from there on. So, behind a prefix that has opened o, all
    l > o are equally probable, having made the same free choices; and l = o is more probable than one of those by a
    factor r, since every bracket closed after the o-th opened had fewer alternatives.

    Symbol 2k opens a bracket of kind k, symbol 2k + 1 closes one.

    Args:
        nest: only the bracket opened last may close, and a word ends when none is open (else: any, and at its target).
        mixed: false lets a word have only the kind that it begins with.
    """

    def __init__(self, kinds: int, most: int, nest: bool, mixed: bool = True):
        self.kinds, self.most, self.nest, self.mixed = kinds, most, nest, mixed
        self.num_symbols = 2 * kinds
        self.stack = DEPTHS + kinds  # the first column of it: the kinds that are open, if they nest

    def start(self, num: int) -> Tensor:
        state = torch.zeros(num, self.stack + (self.most if self.nest else 0), dtype=torch.float64)
        state[:, ALIVE] = 1
        state[:, LOG_RATIO] = -torch.inf  # l is not 0
        return state

    def choices(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Two (B, kinds) bool: which kinds may open, as far as the target allows it, and which may close."""
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
        # How probable l = o is, beside all l > o together.
        forced = torch.sigmoid(state[:, LOG_RATIO] - (self.most - state[:, OPENED]).log())
        free = 1 - forced
        closed = (num_close == 0) & (state[:, OPENED] > 0)
        if self.nest:
            ends, free = closed.double(), ~closed * free
        else:
            ends = closed * forced
        any_of_them = (free / (may_open.sum(1) + num_close).clamp_min(1))[:, None]
        closing = (forced / num_close.clamp_min(1))[:, None]
        brackets = torch.stack([may_open * any_of_them, may_close * (any_of_them + closing)], 2).flatten(1)
        return torch.cat([ends[:, None], brackets], 1) * state[:, ALIVE, None]

    def read(self, state: Tensor, symbol: Tensor) -> Tensor:
        row, kind, opens = torch.arange(len(state)), symbol // 2, symbol % 2 == 0
        may_open, may_close = self.choices(state)
        num_close = may_close.sum(1)
        possible = self.probabilities(state)[row, 1 + symbol] > 0
        after = state.clone()
        after[:, ALIVE] *= possible
        after[:, OPENED] += opens
        fewer = (may_open.sum(1) + num_close).double().log() - num_close.clamp_min(1).double().log()
        after[:, LOG_RATIO] = torch.where(opens, 0.0, state[:, LOG_RATIO] + fewer)
        after[row, DEPTHS + kind] += torch.where(opens, 1.0, -1.0)
        if self.nest:
            depth = state[:, DEPTHS : self.stack].sum(1).long().clamp(0, self.most - 1)
            after[row, self.stack + depth] = torch.where(opens, kind, after[row, self.stack + depth]).double()
        return torch.where(possible[:, None], after, state * (torch.arange(state.shape[1]) != ALIVE))

    def entropy(self) -> float:
        return self.nested_entropy() if self.nest else self.counted_entropy()

    def nested_entropy(self) -> float:
        """Chain rule over prefixes, which matter by o, the brackets closed since the o-th opened, and the depth."""
        kinds = self.kinds if self.mixed else 1
        total = math.log(self.kinds)
        passed = torch.zeros(self.most + 2, dtype=torch.float64)  # by depth, just behind the o-th opening
        passed[1] = 1
        for opened in range(1, self.most + 1):
            opening = torch.zeros_like(passed)
            for closed in range(opened):
                passed[0] = 0  # those words have ended
                going_on = passed.sum().item()
                if going_on < NEGLIGIBLE:
                    break
                opens = free_share(closed * math.log(kinds + 1), self.most - opened) / (kinds + 1)
                closes = 1 - kinds * opens
                per_step = -closes * math.log(closes) - (kinds * opens * math.log(opens) if opens else 0)
                total += per_step * going_on
                opening[1:] += kinds * opens * passed[:-1]
                passed = torch.nn.functional.pad(passed[1:] * closes, (0, 1))
            passed = opening
        return total

    def counted_entropy(self) -> float:
        """A word's length is its target: ln(most) for l, and for each l the logarithms of the numbers of choices."""
        size = self.most + 2
        depth = torch.arange(size)
        depths = torch.stack(torch.meshgrid([depth] * self.kinds, indexing="ij"))  # of each kind, by depth of all kinds
        total_depth, num_open = depths.sum(0), (depths > 0).sum(0).double()
        last = torch.zeros(total_depth.shape, dtype=torch.float64)  # what is to come once all are open
        for level in range(1, size):
            fewer = sum(last.roll(1, kind) * (depths[kind] > 0) for kind in range(self.kinds))
            last = torch.where(total_depth == level, num_open.log() + fewer / num_open, last)
        # By o: what a step costs on average if it comes while o are open, and what is to come if it opens the next.
        free_cost, last_cost = torch.zeros(2, 2 * size * self.kinds, dtype=torch.float64)
        passed = torch.zeros_like(last)  # by depths, as long as every step is free
        passed.view(-1)[0] = 1
        for step in range(2 * self.most):
            each = passed / (self.kinds + num_open)
            opened = ((step + total_depth) // 2).flatten()
            to_come = sum(last.roll(-1, kind) for kind in range(self.kinds))
            free_cost.index_add_(0, opened, (passed * (self.kinds + num_open).log()).flatten())
            last_cost.index_add_(0, opened + 1, (each * to_come).flatten())
            passed = sum(
                (each * (depth < size - 1).view([-1] + [1] * (self.kinds - 1 - kind))).roll(1, kind)
                + (each * (depths[kind] > 0)).roll(-1, kind)
                for kind in range(self.kinds)
            )
        targets = torch.arange(1, self.most + 1)
        return math.log(self.most) + (free_cost.cumsum(0)[targets - 1] + last_cost[targets]).mean().item()


def free_share(log_ratio: float, more: int) -> float:
    """How probable it is that ``more`` further targets are meant together, beside one that is r times as probable."""
    return more / (more + math.exp(min(log_ratio, 600))) if more else 0.0
