"""A training step (forward, backward and AdamW) on a batch of 128 words of L5, with the defaults of each model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.comparison import Comparison
from benchmarks.sizes import NUM_TOKENS, make
from benchmarks.table import run
from rule_extrapolation.core.tokens import PAD
from rule_extrapolation.grammars import get_grammar
from rule_extrapolation.models.linear import LinearLLM
from rule_extrapolation.models.lstm import LSTM_LLM
from rule_extrapolation.models.mamba import MambaLM
from rule_extrapolation.models.transformer import TransformerDecoder
from rule_extrapolation.models.xlstm import xlstm, xLSTMLMModel

TORCH = f"torch {torch.__version__}"


def words(batch_size: int) -> Tensor:
    """(B, 34) framed words of L5: 33 tokens to read, 33 to predict."""
    return get_grammar("L5", max_length=32).sample(batch_size, torch.Generator().manual_seed(0))


def training_step(model: nn.Module, rows: Tensor) -> Callable[[], None]:
    """A function that does one step of training, for a model from (B, T) tokens to (B, num_tokens, T) logits."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(rows[:, :-1]), rows[:, 1:]).backward()
        optimizer.step()

    return step


def at_first_call(make_step: Callable[[], Callable[[], None]]) -> Callable[[], None]:
    """Makes the step when it is first called, so that only one row fails if a peer is not installed."""
    made: list[Callable[[], None]] = []

    def step() -> None:
        if not made:
            made.append(make_step())
        made[0]()

    return step


class EncoderPeer(nn.Module):
    """nn.TransformerEncoder with a causal mask and a padding mask, both added to the scores."""

    def __init__(self, ours: TransformerDecoder):
        super().__init__()
        self.embedding, self.head, self.dropout = ours.embedding, ours.head, nn.Dropout(ours.dropout_p)
        self.encoder = nn.TransformerEncoder(ours.layers[0], len(ours.layers), enable_nested_tensor=False)
        self.encoder.layers.load_state_dict(ours.layers.state_dict())
        self.register_buffer("positions", ours.positions)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim) + self.positions[:length]
        causal = nn.Transformer.generate_square_subsequent_mask(length)
        padding = torch.zeros(tokens.shape).masked_fill(tokens == PAD, -torch.inf)
        x = self.encoder(self.dropout(x), mask=causal, src_key_padding_mask=padding, is_causal=True)
        return self.head(x).transpose(1, 2)


class LSTMPeer(nn.Module):
    def __init__(self, ours: LSTM_LLM):
        super().__init__()
        self.embedding, self.lstm, self.head = ours.embedding, ours.lstm, ours.head

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0]).transpose(1, 2)


class EinsumPeer(nn.Module):
    def __init__(self, ours: LinearLLM):
        super().__init__()
        self.embedding, self.weight, self.bias = ours.embedding, ours.weight, ours.bias
        self.register_buffer("mask", ours.mask[:, 0, :, 0])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return (torch.einsum("bsw,swtv,st->btv", x, self.weight, self.mask) + self.bias).transpose(1, 2)


def mambapy_peer(ours: MambaLM) -> nn.Module:
    """mambapy's layers between the embedding and the head of ours, with the same weights."""
    from mambapy.mamba import Mamba, MambaConfig

    mixer = ours.backbone.layers[0].mixer
    (d_inner, d_state), d_model = mixer.A_log.shape, ours.lm_head.in_features
    layers = Mamba(
        MambaConfig(
            d_model=d_model,
            n_layers=len(ours.backbone.layers),
            d_state=d_state,
            expand_factor=d_inner // d_model,
            d_conv=mixer.conv1d.kernel_size[0],
        )
    )
    layers.load_state_dict(ours.backbone.state_dict(), strict=False)
    logits = nn.Sequential(ours.backbone.embedding, layers, ours.backbone.norm_f, ours.lm_head)
    return nn.Sequential(logits, Rearranged(NUM_TOKENS))


def xlstm_peer(ours: xLSTMLMModel) -> nn.Module:
    """The xlstm package's own model with the same weights."""
    theirs = xlstm.xLSTMLMModel(copy.deepcopy(ours.model.config))
    theirs.load_state_dict(ours.model.state_dict())
    return nn.Sequential(theirs, Rearranged(NUM_TOKENS))


class Rearranged(nn.Module):
    """(B, T, at least num_tokens) -> (B, num_tokens, T)."""

    def __init__(self, num_tokens: int):
        super().__init__()
        self.num_tokens = num_tokens

    def forward(self, logits: Tensor) -> Tensor:
        return logits[..., : self.num_tokens].transpose(1, 2)


PEERS = {
    "mamba": (mambapy_peer, "mambapy 1.2.0, same weights", 15.0),
    "xlstm": (xlstm_peer, f"xlstm {version('xlstm')} called directly, same weights", 1.5),
    "transformer": (EncoderPeer, f"nn.TransformerEncoder, {TORCH}", 2.0),
    "lstm": (LSTMPeer, f"bare nn.LSTM and nn.Linear, {TORCH}", 0.97),
    "linear": (EinsumPeer, f'einsum "bsw,swtv,st->btv", {TORCH}', 2.0),
}


def comparisons(batch_size: int = 128) -> Iterator[Comparison]:
    rows = words(batch_size)
    for name, (peer, peer_name, at_least) in PEERS.items():
        torch.manual_seed(0)
        ours, copied = make(name), make(name)
        copied.load_state_dict(ours.state_dict())
        yield Comparison(
            name=f"training step: {name}",
            ours=training_step(ours, rows),
            peer=at_first_call(lambda peer=peer, ours=copied: training_step(peer(ours), rows)),
            peer_name=peer_name,
            at_least=at_least,
        )


if __name__ == "__main__":
    run(comparisons())
