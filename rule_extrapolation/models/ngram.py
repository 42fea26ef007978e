from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError, check_choice, check_fraction, check_positive
from rule_extrapolation.core.tokens import EOS, PAD, SOS
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.models.smoothing import Smoothing, Table
from rule_extrapolation.ops.ngrams import NONE, count_ngrams, look_up

SMOOTHINGS = ("mle", "laplace", "add_k", "backoff", "interpolation", "kneser_ney")
MAX_ORDER = 32
"""Higher orders take minutes to count, and their contexts are nearly all different."""
TABLE = ("contexts", "starts", "tokens", "probabilities", "weights")
"""The buffers of each length of context: the contexts' keys in ascending order; where the n-grams of each context
start, and where the last one's end; the tokens and probabilities of the n-grams; and the contexts' back-off weights."""


class NGramLM(LanguageModel):
    """An n-gram model: the next token's probabilities given the last ``order - 1`` tokens, by counting.

    - mle: relative frequencies after the longest context, or the uniform distribution if that context was never seen.
    - laplace, add_k: the same with 1 or k added to each count.
    - backoff: Katz (1987), with absolute discounting instead of Good-Turing.
    - interpolation: Jelinek & Mercer (1980), a mixture of the relative frequencies of all orders. Expectation
      maximization fits its weights to the validation rows. Contexts of one length and similar counts share a weight.
    - kneser_ney: interpolated modified Kneser-Ney (Chen & Goodman 1999), down to the uniform distribution.

    Logits are log-probabilities. Impossible tokens get the logarithm of the smallest positive float, so that losses
    stay finite. EOS and PAD are always followed by PAD, and nothing else is; SOS is never predicted. This framing of
    rows is built in, so that it takes no probability from symbols. At the beginning of a row the context is shorter.

    The state is (B, order - 1): the last tokens, NONE before the first.

    Args:
        order: n, such as 3 for trigrams.
        smoothing: one of the methods above.
        k: what add_k adds to each count.
        discount: of backoff and kneser_ney, the same for every count. None: estimate three discounts for each order
            (Chen & Goodman 1999).
        min_count: leave out n-grams of two or more tokens that occur fewer times, or a minimum for each order.

    Raises:
        ConfigError: an order below 1 or above MAX_ORDER; an unknown smoothing; a k that is not positive; a discount
            outside [0, 1); a ``min_count`` below 1, or a list that descends or does not have a number for each order.
    """

    fitted_by_counting = True
    baseline = True

    def __init__(
        self,
        num_tokens: int,
        order: int = 3,
        smoothing: str = "kneser_ney",
        k: float = 0.1,
        discount: float | None = None,
        min_count: int | list[int] = 1,
    ):
        super().__init__()
        check_positive(order=order, k=k)
        if order > MAX_ORDER:
            raise ConfigError("order", order, f"must be at most {MAX_ORDER}")
        check_choice(SMOOTHINGS, smoothing=smoothing)
        if discount is not None:
            check_fraction(discount=discount)
        min_counts = [1, *[min_count] * (order - 1)] if isinstance(min_count, int) else list(min_count)
        if len(min_counts) != order:
            raise ConfigError("min_count", min_count, f"must be one number, or one for each order from 1 to {order}")
        if min(min_counts) < 1 or min_counts != sorted(min_counts):
            raise ConfigError("min_count", min_count, "must be 1 or more, and must not descend with the order")
        self.num_tokens, self.order = num_tokens, order
        self.smoothing = Smoothing(smoothing, k, discount, min_counts)
        predicted = torch.ones(num_tokens)
        predicted[[SOS, PAD]] = 0
        # The distribution after a context of which nothing is known: uniform, until ``fit_counts`` has counted.
        self.register_buffer("unseen", predicted / predicted.sum())
        for length in range(1, order):
            for name, dtype in zip(TABLE, (torch.long, torch.long, torch.int32, torch.float32, torch.float32)):
                empty = torch.zeros(1 if name == "starts" else 0, dtype=dtype)
                self.register_buffer(f"{name}_{length}", empty)

    def fit_counts(self, rows: Iterable[Tensor], held_out: Iterable[Tensor], carried: bool = False) -> None:
        held_out = held_out if self.smoothing.name == "interpolation" else ()  # only interpolation has weights to fit
        counts, others = (count_ngrams(each, self.order, self.num_tokens, carried) for each in (rows, held_out))
        words = self.unseen.cpu() > 0
        tables = self.smoothing.tables(counts, others, self.num_tokens, int(words.sum()))
        unseen = words / words.sum()
        if self.smoothing.added is None or self.order == 1:
            unseen = unseen * tables[0].weights
            unseen[tables[0].level.tokens] = tables[0].probabilities.to(unseen.dtype)
        self.unseen = unseen.to(self.unseen)
        for length, table in enumerate(tables[1:], 1):
            self.store(length, table)

    def store(self, length: int, table: Table) -> None:
        """Assign the buffers of contexts of this length."""
        level = table.level
        starts = torch.searchsorted(level.owners, torch.arange(len(level.contexts) + 1))
        for name, values in zip(TABLE, (level.contexts, starts, level.tokens, table.probabilities, table.weights)):
            name = f"{name}_{length}"
            setattr(self, name, values.to(getattr(self, name)))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        # The sizes of the buffers depend on the counted data.
        for name, buffer in self.named_buffers():
            if prefix + name in state_dict:
                setattr(self, name, buffer.new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_state(self, batch_size: int) -> Tensor:
        return torch.full((batch_size, self.order - 1), NONE, device=self.unseen.device)

    def advance(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        history = torch.cat([state, tokens], 1)  # (B, order - 1 + T)
        contexts = history[:, 1:].unfold(1, self.order - 1, 1).flip(2)  # (B, T, order - 1), the last token first
        probabilities = self.probabilities(contexts.flatten(0, 1)).unflatten(0, tokens.shape)
        ended = (tokens == EOS) | (tokens == PAD)
        pad = F.one_hot(torch.tensor(PAD, device=tokens.device), self.num_tokens).to(probabilities)
        probabilities = torch.where(ended[..., None], pad, probabilities)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log(), history[:, tokens.shape[1] :]

    def probabilities(self, contexts: Tensor) -> Tensor:
        """(N, order - 1) tokens, the last one first, NONE beyond a row's beginning -> (N, num_tokens)."""
        result = self.unseen.repeat(len(contexts), 1)
        numbers = contexts.new_zeros(len(contexts))
        is_token = F.pad(contexts != NONE, (0, 1))
        for length in range(1, self.order):
            keys, starts, tokens, probabilities, weights = (getattr(self, f"{name}_{length}") for name in TABLE)
            numbers = look_up(keys, numbers, contexts[:, length - 1], self.num_tokens)
            known = numbers >= 0
            if self.smoothing.added is not None:  # only the longest context counts
                known = known & ~is_token[:, length]
            rows = known.nonzero().squeeze(1)
            first, end = starts[numbers[rows]], starts[numbers[rows] + 1]
            result[rows] *= weights[numbers[rows], None]
            # The places of all n-grams of these contexts, row by row.
            sizes = end - first
            places = torch.arange(int(sizes.sum()), device=rows.device)
            places += (first - (sizes.cumsum(0) - sizes)).repeat_interleave(sizes)
            result[rows.repeat_interleave(sizes), tokens[places].long()] = probabilities[places]
        return result
