"""Every architecture at the sizes that the contract is tested at. A new model adds its lines here."""

from rule_extrapolation.models.linear import LinearLLM
from rule_extrapolation.models.lstm import LSTM_LLM
from rule_extrapolation.models.mingru import MinGRU
from rule_extrapolation.models.minlstm import MinLSTM
from rule_extrapolation.models.transformer import TransformerDecoder

TINY_TRANSFORMER = {"dim_model": 2, "num_heads": 1, "num_decoder_layers": 1, "dim_feedforward": 2}
TINY_RNN = {"embedding_dim": 2, "hidden_dim": 2, "num_layers": 1}

# Without arguments, a model has its L5 defaults.
MODELS = {
    "transformer-tiny": (TransformerDecoder, TINY_TRANSFORMER),
    "transformer-odd": (TransformerDecoder, {**TINY_TRANSFORMER, "dim_model": 3, "num_heads": 3, "max_len": 20}),
    "transformer-post-norm": (TransformerDecoder, {"norm_first": False, "relu_rescale": 0.5, "num_decoder_layers": 2}),
    "transformer-l5": (TransformerDecoder, {}),
    "lstm-tiny": (LSTM_LLM, TINY_RNN),
    "lstm-l5": (LSTM_LLM, {}),
    "linear-tiny": (LinearLLM, {"embedding_dim": 2, "max_data_length": 19}),
    "linear-no-bias": (LinearLLM, {"embedding_dim": 3, "bias": False}),
    "linear-l5": (LinearLLM, {}),
    **{
        f"{name}-{variant}": (model, arguments)
        for name, model in {"minlstm": MinLSTM, "mingru": MinGRU}.items()
        for variant, arguments in {
            "tiny": TINY_RNN,
            "default": {},
            "wide": {"embedding_dim": 3, "hidden_dim": 5, "num_layers": 3, "dropout": 0.1},
            "parallel": {"scan": "parallel", "num_layers": 2},
            "log": {"scan": "log", "num_layers": 2},
            "plain": {"log_space": False},
            "residual-norm": {"residual": True, "norm": "rms", "num_layers": 3},
        }.items()
    },
}
NUM_TOKENS = 7


def make(name):
    model, arguments = MODELS[name]
    return model(num_tokens=NUM_TOKENS, **arguments)
