from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL, PAD
from rule_extrapolation.models.language_model import LanguageModel

OracleState = tuple[Tensor, Tensor]
"""(B, S) states of the process, and (B,) bool: whether the word has ended."""

IMPOSSIBLE = -1e30
"""A logit at which no token is drawn, whatever the temperature."""


class Process(Protocol):
    """The interface of ``grammars.exact.process.Process`` that the oracle needs."""

    def start(self, batch_size: int) -> Tensor: ...

    def read(self, state: Tensor, symbol: Tensor) -> Tensor: ...

    def probabilities(self, state: Tensor) -> Tensor: ...


class OracleLM(LanguageModel):
    """The optimal model, which has the exact probabilities of the training distribution and no weights.

    After a prefix that no training word has, such as an OOD prompt, these probabilities are undefined. The model then
    *restarts*: it forgets what it has read and continues as if a word began with the last symbol, or after this symbol
    if no word begins with it.

    Args:
        process: the training distribution of the language.
        language: the language's name, for the error message.

    Raises:
        ConfigError: the exact probabilities of the language are unknown.
    """

    caveat = "restarts after prefixes that no training word has"

    def __init__(self, num_tokens: int, process: Process | None, language: str = "this language"):
        super().__init__()
        if process is None:
            raise ConfigError("grammar", language, "its exact probabilities are unknown; define make_process")
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
            continued = self.process.read(torch.where((ended | ~is_symbol)[:, None], start, read), symbol)
            restarted = self.process.read(start, symbol)
            read = self.first_possible(continued, self.first_possible(restarted, start))
            read = torch.where(is_symbol[:, None], read, start)
            ended = (token == EOS) | (token == PAD)
            logits.append(self.logits(read, ended))
        return torch.stack(logits, 1).to(tokens.device), (read, ended)

    def first_possible(self, state: Tensor, otherwise: Tensor) -> Tensor:
        """The rows of ``state`` in which some word is possible, elsewhere those of ``otherwise``."""
        is_possible = (self.process.probabilities(state) > 0).any(1)
        return torch.where(is_possible[:, None], state, otherwise)

    def logits(self, state: Tensor, ended: Tensor) -> Tensor:
        """(B, num_tokens) log-probabilities. Impossible tokens get IMPOSSIBLE, so that losses stay finite."""
        next_ = self.process.probabilities(state)
        probabilities = next_.new_zeros(len(state), self.num_tokens)
        probabilities[:, EOS] = torch.where(ended, 0, next_[:, 0])
        probabilities[:, PAD] = ended.double()
        probabilities[:, FIRST_SYMBOL:] = torch.where(ended[:, None], 0, next_[:, 1:])
        return probabilities.float().log().clamp_min(IMPOSSIBLE)
