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
TABLE = ("contexts", "starts", "tokens", "probabilities", "weights")


class NGramLM(LanguageModel):
    """The next token's probabilities from how often it has followed the last ``order - 1`` tokens.

    They are counted in the training rows, not trained. Logits are log-probabilities; of what is impossible the least
    number's, so that losses stay finite. Behind EOS comes PAD, and nowhere else, and SOS never: that is how rows are
    framed and not of a language, so smoothing takes nothing from it and gives nothing to it. At the beginning of a row
    the context is as much as there is.

    - mle: relative frequencies behind the longest context; evenly probable behind one that was never seen.
    - laplace, add_k: 1 or k is added to each count.
    - backoff: Katz (1987), with absolute discounts in place of Good and Turing's.
    - interpolation: Jelinek & Mercer (1980), relative frequencies of all orders; weights by expectation maximization on
      the validation rows, one for all contexts of a length that were seen about as often.
    - kneser_ney: modified and interpolated, Chen & Goodman (1999), down to evenly probable tokens.

    The state is the last ``order - 1`` tokens, (B, order - 1).

    Args:
        order: n: 3 for trigrams.
        k: of add_k.
        discount: of backoff and kneser_ney, the same for every count; None: Chen & Goodman's three for each order.
        min_count: n-grams of two tokens or more that were seen fewer times are left out; or a number for each order.

    Raises:
        ConfigError: an order below 1, an unknown smoothing, a k that is not above 0, a discount outside [0, 1),
            min_count below 1 or descending or not of as many numbers as the order.
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
        check_choice(SMOOTHINGS, smoothing=smoothing)
        if discount is not None:
            check_fraction(discount=discount)
        least = [1, *[min_count] * (order - 1)] if isinstance(min_count, int) else list(min_count)
        if len(least) != order:
            raise ConfigError("min_count", min_count, f"must be one number, or one for each order from 1 to {order}")
        if min(least) < 1 or least != sorted(least):
            raise ConfigError("min_count", min_count, "must be 1 or more, and no less for a higher order")
        self.num_tokens, self.order = num_tokens, order
        self.smoothing = Smoothing(smoothing, k, discount, least)
        can_come = torch.ones(num_tokens)
        can_come[[SOS, PAD]] = 0
        self.register_buffer("unseen", can_come / can_come.sum())
        for length in range(1, order):
            for name, dtype in zip(TABLE, (torch.long, torch.long, torch.int32, torch.float32, torch.float32)):
                empty = torch.zeros(1 if name == "starts" else 0, dtype=dtype)
                self.register_buffer(f"{name}_{length}", empty)

    def estimate(self, rows: Iterable[Tensor], held_out: Iterable[Tensor], carried: bool = False) -> None:
        held_out = held_out if self.smoothing.name == "interpolation" else ()  # no other has anything to fit
        counts, others = (count_ngrams(each, self.order, self.num_tokens, carried) for each in (rows, held_out))
        words = self.unseen.cpu() > 0
        tables = self.smoothing.tables(counts, others, self.num_tokens, int(words.sum()))
        unseen = words / words.sum()
        if self.smoothing.added is None or self.order == 1:
            unseen = unseen * tables[0].weights
            unseen[tables[0].level.tokens] = tables[0].probabilities.to(unseen.dtype)
        self.unseen = unseen.to(self.unseen)
        for length, table in enumerate(tables[1:], 1):
            self.keep(length, table)

    def keep(self, length: int, table: Table) -> None:
        level = table.level
        starts = torch.searchsorted(level.owners, torch.arange(len(level.contexts) + 1))
        for name, values in zip(TABLE, (level.contexts, starts, level.tokens, table.probabilities, table.weights)):
            name = f"{name}_{length}"
            setattr(self, name, values.to(getattr(self, name)))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        # How much there is to keep depends on the data that was counted.
        for name, buffer in self.named_buffers():
            if prefix + name in state_dict:
                setattr(self, name, buffer.new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_state(self, batch_size: int) -> Tensor:
        return torch.full((batch_size, self.order - 1), NONE, device=self.unseen.device)

    def advance(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        history = torch.cat([state, tokens], 1)
        contexts = history[:, 1:].unfold(1, self.order - 1, 1).flip(2)  # (B, T, order - 1), the last token first
        probabilities = self.probabilities(contexts.flatten(0, 1)).unflatten(0, tokens.shape)
        ended = (tokens == EOS) | (tokens == PAD)
        pad = F.one_hot(torch.tensor(PAD, device=tokens.device), self.num_tokens).to(probabilities)
        probabilities = torch.where(ended[..., None], pad, probabilities)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log(), history[:, tokens.shape[1] :]

    def probabilities(self, contexts: Tensor) -> Tensor:
        """(N, order - 1) tokens, the last one first, NONE before a row's first -> (N, num_tokens)."""
        found = self.unseen.repeat(len(contexts), 1)
        numbers = contexts.new_zeros(len(contexts))
        there = F.pad(contexts != NONE, (0, 1))
        for length in range(1, self.order):
            keys, starts, tokens, probabilities, weights = (getattr(self, f"{name}_{length}") for name in TABLE)
            numbers = look_up(keys, numbers, contexts[:, length - 1], self.num_tokens)
            known = numbers >= 0
            if self.smoothing.added is not None:  # the longest context there is, and no other
                known = known & ~there[:, length]
            rows = known.nonzero().squeeze(1)
            first, end = starts[numbers[rows]], starts[numbers[rows] + 1]
            found[rows] *= weights[numbers[rows], None]
            # Each row's n-grams stand together: all their places, one row after the other.
            sizes = end - first
            places = torch.arange(int(sizes.sum()), device=rows.device)
            places += (first - (sizes.cumsum(0) - sizes)).repeat_interleave(sizes)
            found[rows.repeat_interleave(sizes), tokens[places].long()] = probabilities[places]
        return found
