"""Every architecture with its defaults, which are the settings for L5, and 7 tokens."""

from __future__ import annotations

from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.models.linear import LinearLLM
from rule_extrapolation.models.lstm import LSTM_LLM
from rule_extrapolation.models.mamba import MambaLM
from rule_extrapolation.models.mingru import MinGRU
from rule_extrapolation.models.minlstm import MinLSTM
from rule_extrapolation.models.transformer import TransformerDecoder
from rule_extrapolation.models.xlstm import xLSTMLMModel

NUM_TOKENS = 7
MODELS = {
    "transformer": TransformerDecoder,
    "lstm": LSTM_LLM,
    "linear": LinearLLM,
    "mamba": MambaLM,
    "xlstm": xLSTMLMModel,
    "minlstm": MinLSTM,
    "mingru": MinGRU,
}


def make(name: str, length: int = 33) -> LanguageModel:
    """A new model that can read at least ``length`` tokens."""
    bounds = {"linear": {"max_data_length": length - 1}, "xlstm": {"context_length": length}}
    return MODELS[name](NUM_TOKENS, **bounds.get(name, {}))
