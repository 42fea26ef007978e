from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL, PAD
from rule_extrapolation.models.language_model import LanguageModel

OracleState = tuple[Tensor, Tensor]
"""(B, S) states of the language's process, and (B,) whether the word has ended."""


class Process(Protocol):
    """The exact distribution of the next symbol, state by state: what ``grammars.exact.process`` defines."""

    def start(self, batch_size: int) -> Tensor: ...

    def read(self, state: Tensor, symbol: Tensor) -> Tensor: ...

    def probabilities(self, state: Tensor) -> Tensor: ...


class OracleLM(LanguageModel):
    """The optimal model: the next token's probabilities are exactly those of the training distribution.

    There is nothing to train. Behind what begins no training word, as OOD prompts do, it *restarts*: it forgets what it
    has read and goes on as if a word began with the symbol that fitted no more, or behind that symbol, if none does.

    Args:
        process: the language's; the program gives it.
        language: its name, for the error.

    Raises:
        ConfigError: the language does not know its words' probabilities.
    """

    caveat = "restarts behind what begins no training word"

    def __init__(self, num_tokens: int, process: Process | None, language: str = "this language"):
        super().__init__()
        if process is None:
            raise ConfigError("grammar", language, "does not know its words' probabilities; define make_process")
        self.num_tokens, self.process = num_tokens, process

    def init_state(self, batch_size: int) -> OracleState:
        return self.process.start(batch_size), torch.zeros(batch_size, dtype=torch.bool)

    def advance(self, tokens: Tensor, state: OracleState) -> tuple[Tensor, OracleState]:
        read, ended = state
        start = self.process.start(len(tokens))
        logits = []
        for token in tokens.cpu().unbind(1):
            symbol = (token - FIRST_SYMBOL).clamp_min(0)
            is_symbol = token >= FIRST_SYMBOL
            going_on = self.process.read(torch.where((ended | ~is_symbol)[:, None], start, read), symbol)
            begun = self.process.read(start, symbol)
            read = self.possible(going_on, self.possible(begun, start))
            read = torch.where(is_symbol[:, None], read, start)
            ended = (token == EOS) | (token == PAD)
            logits.append(self.logits(read, ended))
        return torch.stack(logits, 1).to(tokens.device), (read, ended)

    def possible(self, state: Tensor, otherwise: Tensor) -> Tensor:
        is_possible = (self.process.probabilities(state) > 0).any(1)
        return torch.where(is_possible[:, None], state, otherwise)

    def logits(self, state: Tensor, ended: Tensor) -> Tensor:
        """(B, num_tokens) log-probabilities; of what is impossible the least number, so that losses stay finite."""
        next_ = self.process.probabilities(state)
        probabilities = next_.new_zeros(len(state), self.num_tokens)
        probabilities[:, EOS] = torch.where(ended, 0, next_[:, 0])
        probabilities[:, PAD] = ended.double()
        probabilities[:, FIRST_SYMBOL:] = torch.where(ended[:, None], 0, next_[:, 1:])
        return probabilities.float().clamp_min(torch.finfo(torch.float32).tiny).log()
