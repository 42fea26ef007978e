from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rule_extrapolation.core.errors import ConfigError, check_choice, check_fraction, check_positive
from rule_extrapolation.core.tokens import SOS
from rule_extrapolation.models.language_model import LanguageModel

Hidden = Tensor | tuple[Tensor, Tensor]
"""(num_layers, B, hidden_dim): h of a GRU, (h, c) of an LSTM."""


class Memory(NamedTuple):
    """What the decoder attends to."""

    values: Tensor
    """(B, P, hidden_dim): the encoder's outputs."""
    keys: Tensor
    """(B, P, hidden_dim): the same, as far as a score can be computed before there is a query."""
    padding: Tensor | None
    """(B, P) bool: which of them are of no token of the prompt; None: all are of one."""


class State(NamedTuple):
    memory: Memory | None
    """None: no token has been read."""
    hidden: Hidden | None


class Seq2Seq(LanguageModel):
    """Encoder-decoder: one RNN reads the prompt, another begins with its last state and writes the completion.

    Without attention that state is all that the decoder has of the prompt (Sutskever et al. 2014, arXiv 1409.3215; the
    prompt is not reversed). With ``dot`` and ``general`` the decoder's output s_t attends to the encoder's outputs h_j
    (Luong et al. 2015, arXiv 1508.04025, "global", without input feeding); with ``additive`` it is the state s_{t-1}
    that does, and the context is read with the token (Bahdanau et al. 2015, arXiv 1409.0473; but the encoder reads in
    one direction). The context c_t then joins the output by Luong's equation 5, tanh(W [c_t; s_t]).

    The decoder begins with SOS. Read as a language model, by ``forward``, the first token is the prompt.

    Args:
        attention: the score of s and h: none; dot, s.h; general, s.W h; additive, v.tanh(W s + U h).
        dropout: between layers.
        teacher_forcing: in training, the probability that the decoder reads a token of the completion, and not one
            drawn from what it has itself predicted there (Bengio et al. 2015, arXiv 1506.03099). 1 is much the fastest.

    Raises:
        ConfigError: sizes below 1, dropout outside [0, 1), teacher_forcing outside [0, 1].
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

    def continuation(self, prompt: Tensor, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """As LanguageModel's; in training with ``teacher_forcing``.

        Args:
            lengths: (B,) tokens of each prompt, from 1; what stands behind them is not read. None: all of them.
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
        """(B, P) prompts, of ``lengths`` tokens or all of P -> the state before the decoder's first token."""
        x, padding = self.embedding(prompt), None
        if lengths is None:
            values, hidden = self.encoder(x)
        else:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            packed, hidden = self.encoder(packed)
            values, _ = pad_packed_sequence(packed, batch_first=True)
            padding = torch.arange(values.shape[1], device=values.device) >= lengths[:, None]
        return State(Memory(values, self.attention.keys(values), padding), hidden)

    def decode(self, tokens: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        """Read (B, T) tokens from a state on.

        Returns:
            (B, T, num_tokens) logits, the state behind them, and (B, T, P) attention weights, if any.
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
        """(B, T, num_tokens) logits, where a token of ``inputs`` but the first is read with probability
        ``teacher_forcing``, else one drawn from the logits before it."""
        token, steps = inputs[:, :1], []
        for t in range(inputs.shape[1]):
            if t:
                # Where training has diverged there is no distribution, and any token will do.
                drawn = torch.multinomial(steps[-1][:, 0].detach().softmax(1).nan_to_num(1.0), 1)
                given = torch.rand(drawn.shape, device=drawn.device) < self.teacher_forcing
                token = inputs[:, t : t + 1].where(given, drawn)
            logits, state, _ = self.decode(token, state)
            steps.append(logits)
        return torch.cat(steps, 1)


def begin(tokens: Tensor) -> Tensor:
    """(B, 1): what the decoder reads first."""
    return torch.full_like(tokens[:, :1], SOS)


class NoAttention(nn.Module):
    """The decoder's output as it is."""

    is_read = False
    """Whether the context is part of what the decoder reads."""

    def __init__(self, dim: int):
        super().__init__()

    def keys(self, values: Tensor) -> Tensor:
        return values

    def forward(self, output: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """(B, T, dim) outputs of the decoder -> the same with what they attend to, and (B, T, P) weights, if any."""
        return output, None


class Dot(NoAttention):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.combine = nn.Linear(2 * dim, dim, bias=False)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """(B, T, dim) and (B, P, dim) -> (B, T, P)."""
        return query @ keys.mT

    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """(B, T, dim) -> contexts (B, T, dim), weights (B, T, P)."""
        scores = self.scores(query, memory.keys)
        if memory.padding is not None:
            scores = scores.masked_fill(memory.padding[:, None], -torch.inf)
        weights = scores.softmax(2)
        return weights @ memory.values, weights

    def join(self, context: Tensor, output: Tensor) -> Tensor:
        """Luong et al., equation 5."""
        return self.combine(torch.cat([context, output], 2)).tanh()

    def forward(self, output: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        context, weights = self.attend(output, memory)
        return self.join(context, output), weights


class General(Dot):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.of_key = nn.Linear(dim, dim, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        return self.of_key(values)


class Additive(General):
    is_read = True

    def __init__(self, dim: int):
        super().__init__(dim)
        self.of_query = nn.Linear(dim, dim, bias=False)
        self.of_sum = nn.Linear(dim, 1, bias=False)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return self.of_sum((self.of_query(query)[:, :, None] + keys[:, None]).tanh()).squeeze(3)


ATTENTIONS = {"none": NoAttention, "dot": Dot, "general": General, "additive": Additive}
