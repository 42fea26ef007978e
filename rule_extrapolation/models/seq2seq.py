from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rule_extrapolation.core.errors import ConfigError, check_choice, check_fraction, check_positive
from rule_extrapolation.core.tokens import SOS
from rule_extrapolation.models.language_model import LanguageModel

Hidden = Tensor | tuple[Tensor, Tensor]
"""h of a GRU or (h, c) of an LSTM, each of shape (num_layers, B, hidden_dim)."""


class Memory(NamedTuple):
    """What the decoder attends to."""

    values: Tensor
    """(B, P, hidden_dim): the encoder's outputs."""
    keys: Tensor
    """(B, P, hidden_dim): the part of the score that does not depend on the query."""
    padding: Tensor | None
    """(B, P) bool: which positions are padding. None: no position is."""


class State(NamedTuple):
    """The state of the decoder."""

    memory: Memory | None
    """None before the first token."""
    hidden: Hidden | None


class Seq2Seq(LanguageModel):
    """An encoder-decoder: one RNN reads the prompt, and another writes the completion, beginning with the first's last
    state.

    - none: no attention; the encoder's last state is all the decoder knows of the prompt (Sutskever et al. 2014, arXiv
      1409.3215; the prompt is not reversed).
    - dot, general: the decoder's output s_t attends to the encoder's outputs h_j with the score s.h or s.W h (Luong et
      al. 2015, arXiv 1508.04025, global attention without input feeding).
    - additive: the decoder's state s_{t-1} attends, with the score v.tanh(W s + U h), and the decoder reads the context
      with its next token (Bahdanau et al. 2015, arXiv 1409.0473; but the encoder is unidirectional).

    With attention, the context c_t and the output s_t are combined as tanh(W [c_t; s_t]) (Luong et al., equation 5).

    The decoder's first token is SOS. ``forward`` treats the first token of a sequence as the prompt.

    Args:
        cell: the RNN: lstm or gru.
        attention: the kind of attention, as above.
        num_layers: of the encoder, and of the decoder.
        dropout: probability of dropout between layers.
        teacher_forcing: the probability that the decoder reads the true token in training instead of one drawn from its
            own prediction (scheduled sampling, Bengio et al. 2015, arXiv 1506.03099). 1 is by far the fastest.

    Raises:
        ConfigError: sizes below 1, dropout outside [0, 1), or teacher_forcing outside [0, 1].
    """

    conditional = True

    def __init__(
        self,
        num_tokens: int,
        cell: Literal["lstm", "gru"] = "lstm",
        attention: Literal["none", "dot", "general", "additive"] = "dot",
        embedding_dim: int = 64,
        hidden_dim: int = 64,
        num_layers: int = 1,
        dropout: float = 0.0,
        teacher_forcing: float = 1.0,
    ):
        super().__init__()
        check_choice(["lstm", "gru"], cell=cell)
        check_choice(["none", "dot", "general", "additive"], attention=attention)
        check_positive(embedding_dim=embedding_dim, hidden_dim=hidden_dim, num_layers=num_layers)
        check_fraction(dropout=dropout)
        if not 0 <= teacher_forcing <= 1:
            raise ConfigError("teacher_forcing", teacher_forcing, "must be from 0 to 1")
        self.teacher_forcing = teacher_forcing
        rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
        options = {"num_layers": num_layers, "dropout": dropout if num_layers > 1 else 0.0, "batch_first": True}
        self.attention = ATTENTIONS[attention](hidden_dim)
        self.embedding = nn.Embedding(num_tokens, embedding_dim)
        self.encoder = rnn(embedding_dim, hidden_dim, **options)
        self.decoder = rnn(embedding_dim + hidden_dim * self.attention.is_read, hidden_dim, **options)
        self.head = nn.Linear(hidden_dim, num_tokens)

    def init_state(self, batch_size: int) -> State:
        return State(None, None)

    def advance(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        if state.memory is None:
            state = self.encode(tokens[:, :1])
            tokens = torch.cat([begin(tokens), tokens[:, 1:]], 1)
        logits, state, _ = self.decode(tokens, state)
        return logits, state

    def prefill(self, prompt: Tensor) -> tuple[Tensor, State]:
        logits, state, _ = self.decode(begin(prompt), self.encode(prompt))
        return logits[:, 0], state

    def continuation_logits(self, prompt: Tensor, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """As ``LanguageModel.continuation_logits``, with ``teacher_forcing`` in training.

        Args:
            lengths: (B,) tokens in each prompt, at least 1; the rest of the row is ignored. None: P.
        """
        state = self.encode(prompt, lengths)
        inputs = torch.cat([begin(prompt), tokens[:, :-1]], 1)
        if self.training and self.teacher_forcing < 1:
            return self.decode_sampling(inputs, state).mT
        logits, _, _ = self.decode(inputs, state)
        return logits.mT

    def attention_weights(self, prompt: Tensor, tokens: Tensor) -> Tensor | None:
        _, _, weights = self.decode(torch.cat([begin(prompt), tokens[:, :-1]], 1), self.encode(prompt))
        return weights

    def encode(self, prompt: Tensor, lengths: Tensor | None = None) -> State:
        """(B, P) prompts and their (B,) lengths (None: P) -> the state before the decoder's first token."""
        x, padding = self.embedding(prompt), None  # (B, P, embedding_dim)
        if lengths is None:
            values, hidden = self.encoder(x)
        else:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            packed, hidden = self.encoder(packed)
            values, _ = pad_packed_sequence(packed, batch_first=True)
            padding = torch.arange(values.shape[1], device=values.device) >= lengths[:, None]
        return State(Memory(values, self.attention.keys(values), padding), hidden)

    def decode(self, tokens: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        """Continue decoding from a state.

        Args:
            tokens: (B, T) long.

        Returns:
            (B, T, num_tokens) logits, the state after them, and (B, T, P) attention weights, or None without attention.
        """
        memory, hidden = state
        x = self.embedding(tokens)
        if not self.attention.is_read:
            output, hidden = self.decoder(x, hidden)
            output, weights = self.attention(output, memory)
            return self.head(output), State(memory, hidden), weights
        outputs, contexts, all_weights = [], [], []
        for token in x.split(1, 1):
            query = (hidden if isinstance(hidden, Tensor) else hidden[0])[-1]
            context, weights = self.attention.attend(query[:, None], memory)
            output, hidden = self.decoder(torch.cat([token, context], 2), hidden)
            for parts, part in zip((outputs, contexts, all_weights), (output, context, weights)):
                parts.append(part)
        output = self.attention.join(torch.cat(contexts, 1), torch.cat(outputs, 1))
        return self.head(output), State(memory, hidden), torch.cat(all_weights, 1)

    def decode_sampling(self, inputs: Tensor, state: State) -> Tensor:
        """Scheduled sampling: read each token of ``inputs`` with probability ``teacher_forcing``, else a token drawn
        from the logits for it. The first token is always read.

        Args:
            inputs: (B, T) long.

        Returns:
            (B, T, num_tokens) logits.
        """
        token, steps = inputs[:, :1], []
        for t in range(inputs.shape[1]):
            if t:
                probabilities = steps[-1][:, 0].detach().softmax(1)
                drawn = torch.multinomial(probabilities.nan_to_num(1.0), 1)
                given = torch.rand(drawn.shape, device=drawn.device) < self.teacher_forcing
                given |= probabilities.isnan().any(1, keepdim=True)  # of a model that has diverged
                token = inputs[:, t : t + 1].where(given, drawn)
            logits, state, _ = self.decode(token, state)
            steps.append(logits)
        return torch.cat(steps, 1)


def begin(tokens: Tensor) -> Tensor:
    """(B, 1) long: SOS, the first token of the decoder."""
    return torch.full_like(tokens[:, :1], SOS)


class NoAttention(nn.Module):
    """No attention, and the interface of all kinds of attention."""

    is_read = False
    """Whether the decoder reads the context with each token."""

    def __init__(self, dim: int):
        super().__init__()

    def keys(self, values: Tensor) -> Tensor:
        """(B, P, dim) outputs of the encoder -> (B, P, dim) keys."""
        return values

    def forward(self, output: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """(B, T, dim) outputs of the decoder -> (B, T, dim) combined with contexts, and (B, T, P) weights or None."""
        return output, None


class Dot(NoAttention):
    """Attention with the score s.h."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.combine = nn.Linear(2 * dim, dim, bias=False)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """(B, T, dim) queries and (B, P, dim) keys -> (B, T, P)."""
        return query @ keys.mT

    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """(B, T, dim) queries -> (B, T, dim) contexts and (B, T, P) weights."""
        scores = self.scores(query, memory.keys)
        if memory.padding is not None:
            scores = scores.masked_fill(memory.padding[:, None], -torch.inf)
        weights = scores.softmax(2)
        return weights @ memory.values, weights

    def join(self, context: Tensor, output: Tensor) -> Tensor:
        """Combine (B, T, dim) contexts and outputs: tanh(W [c; s]) (Luong et al. 2015, equation 5)."""
        return self.combine(torch.cat([context, output], 2)).tanh()

    def forward(self, output: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        context, weights = self.attend(output, memory)
        return self.join(context, output), weights


class General(Dot):
    """Attention with the score s.W h."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.of_key = nn.Linear(dim, dim, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        return self.of_key(values)


class Additive(General):
    """Attention with the score v.tanh(W s + U h)."""

    is_read = True

    def __init__(self, dim: int):
        super().__init__(dim)
        self.of_query = nn.Linear(dim, dim, bias=False)
        self.of_sum = nn.Linear(dim, 1, bias=False)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return self.of_sum((self.of_query(query)[:, :, None] + keys[:, None]).tanh()).squeeze(3)


ATTENTIONS = {"none": NoAttention, "dot": Dot, "general": General, "additive": Additive}
