from __future__ import annotations

import torch
from torch import Tensor, nn

from rule_extrapolation.core.errors import ConfigError, check_fraction, check_positive
from rule_extrapolation.models.language_model import LanguageModel

ACTIONS = 3  # push, pop and no operation
EMPTY = -1.0


class StackRNN(LanguageModel):
    """A recurrent network with differentiable stacks (Joulin & Mikolov 2015, arXiv 1503.01007, sections 3.1 and 3.2).

    A stack holds a superposition: each action is done to the extent of its probability. With s_1 the top of a stack,
    the network computes from each token x, as in sections 3.1 and 3.2 of the paper,

        h' = σ(U x + R h + P s_1..k + b)
        a = softmax(A h'), for push, pop and no operation
        s'_1 = a_push σ(D h') + a_pop s_2 + a_noop s_1
        s'_i = a_push s_(i-1) + a_pop s_(i+1) + a_noop s_i
        logits = V h'

    with actions of its own for every stack. An empty element is -1. What is pushed below ``stack_size`` is lost.

    Other differentiable stacks were considered: that of Grefenstette et al. 2015 (arXiv 1506.02516) pushes vectors with
    fractional strengths, and its cost grows with the square of the length; the nondeterministic one of DuSell & Chiang
    2020 (arXiv 2010.04674) sums over all runs of a pushdown automaton, and its cost grows with the cube. The
    superposition costs the same at every token.

    The state is the hidden state, (B, hidden_dim), and the stacks, (B, num_stacks, stack_size).

    Args:
        num_stacks: stacks, each with actions of its own.
        stack_size: elements that a stack keeps.
        top: elements of each stack that the hidden state reads, the k of the paper.
        dropout: probability of dropout on the hidden state that the output layer reads.

    Raises:
        ConfigError: sizes below 1, top above stack_size, or dropout outside [0, 1).
    """

    def __init__(
        self,
        num_tokens: int,
        embedding_dim: int = 64,
        hidden_dim: int = 128,
        num_stacks: int = 10,
        stack_size: int = 128,
        top: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_positive(embedding_dim=embedding_dim, hidden_dim=hidden_dim, num_stacks=num_stacks)
        check_positive(stack_size=stack_size, top=top)
        if top > stack_size:
            raise ConfigError("top", top, f"must be at most stack_size={stack_size}")
        check_fraction(dropout=dropout)
        self.hidden_dim, self.num_stacks, self.stack_size, self.top = hidden_dim, num_stacks, stack_size, top
        self.embedding = nn.Embedding(num_tokens, embedding_dim)
        self.of_input = nn.Linear(embedding_dim, hidden_dim)
        self.of_hidden = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.of_stack = nn.Linear(num_stacks * top, hidden_dim, bias=False)
        self.action = nn.Linear(hidden_dim, num_stacks * ACTIONS)
        self.pushed = nn.Linear(hidden_dim, num_stacks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, num_tokens)

    def init_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        weight = self.head.weight
        empty = weight.new_full((batch_size, self.num_stacks, self.stack_size), EMPTY)
        return weight.new_zeros(batch_size, self.hidden_dim), empty

    def advance(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, stacks = state
        outputs = []
        for x in self.of_input(self.embedding(tokens)).unbind(1):  # (B, hidden_dim) each
            hidden = (x + self.of_hidden(hidden) + self.of_stack(stacks[:, :, : self.top].flatten(1))).sigmoid()
            stacks = self.act(hidden, stacks)
            outputs.append(hidden)
        return self.head(self.dropout(torch.stack(outputs, 1))), (hidden, stacks)

    def act(self, hidden: Tensor, stacks: Tensor) -> Tensor:
        """(B, num_stacks, stack_size) -> the same after one action of each stack."""
        actions = self.action(hidden).unflatten(1, (self.num_stacks, ACTIONS)).softmax(2)
        push, pop, keep = actions.unsqueeze(3).unbind(2)  # (B, num_stacks, 1) each
        value = self.pushed(hidden).sigmoid().unsqueeze(2)
        down = torch.cat([value, stacks[:, :, :-1]], 2)
        up = torch.cat([stacks[:, :, 1:], torch.full_like(value, EMPTY)], 2)
        return push * down + pop * up + keep * stacks
