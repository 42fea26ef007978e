"""The sizes at which every architecture is tested. A new model adds its lines here."""

import torch

from rule_extrapolation.grammars import get_grammar
from rule_extrapolation.models.deltanet import DeltaNet
from rule_extrapolation.models.deltaproduct import DeltaProduct
from rule_extrapolation.models.ffnn import FFNN
from rule_extrapolation.models.gated_deltanet import GatedDeltaNet
from rule_extrapolation.models.gru import GRU
from rule_extrapolation.models.linear import LinearLLM
from rule_extrapolation.models.lstm import LSTM_LLM
from rule_extrapolation.models.mamba import MambaLM
from rule_extrapolation.models.mingru import MinGRU
from rule_extrapolation.models.minlstm import MinLSTM
from rule_extrapolation.models.ngram import SMOOTHINGS, NGramLM
from rule_extrapolation.models.normative import NormativeLM
from rule_extrapolation.models.oracle import OracleLM
from rule_extrapolation.models.rnn import RNN
from rule_extrapolation.models.seq2seq import Seq2Seq
from rule_extrapolation.models.stack_rnn import StackRNN
from rule_extrapolation.models.transformer import TransformerDecoder
from rule_extrapolation.models.xlstm import xLSTMLMModel

TINY_TRANSFORMER = {"dim_model": 2, "num_heads": 1, "num_decoder_layers": 1, "dim_feedforward": 2}
TINY_RNN = {"embedding_dim": 2, "hidden_dim": 2, "num_layers": 1}
CPU_XLSTM = {"backend": "vanilla"}  # the kernel needs a GPU
TINY_XLSTM = {"embedding_dim": 4, "num_heads": 1, "num_blocks": 2, "conv1d_kernel_size": 2, "context_length": 20}
TINY_XLSTM |= CPU_XLSTM
TINY_DELTA = {"d_model": 4, "num_layers": 1, "num_heads": 2, "d_conv": 2, "mlp_ratio": 1}

# Without arguments, a model has its L5 defaults.
MODELS = {
    "transformer-tiny": (TransformerDecoder, TINY_TRANSFORMER),
    "transformer-odd": (TransformerDecoder, {**TINY_TRANSFORMER, "dim_model": 3, "num_heads": 3, "max_len": 20}),
    "transformer-post-norm": (TransformerDecoder, {"norm_first": False, "relu_rescale": 0.5, "num_decoder_layers": 2}),
    "transformer-no-positions": (TransformerDecoder, {**TINY_TRANSFORMER, "dim_model": 4, "positions": "none"}),
    "transformer-pad-masked": (
        TransformerDecoder,
        {"mask_pad": True, "num_decoder_layers": 2, "copy_first_layer": True},
    ),
    "transformer-l5": (TransformerDecoder, {}),
    "transformer-learned": (TransformerDecoder, {**TINY_TRANSFORMER, "positions": "learned", "num_positions": 20}),
    "transformer-rope": (
        TransformerDecoder,
        {"dim_model": 8, "num_heads": 4, "num_decoder_layers": 2, "positions": "rope", "norm": "rms"}
        | {"activation": "swiglu", "num_key_value_heads": 2},
    ),
    "transformer-alibi": (
        TransformerDecoder,
        {"dim_model": 6, "num_heads": 3, "num_decoder_layers": 2, "positions": "alibi", "mask_pad": True}
        | {"activation": "gelu", "num_key_value_heads": 1, "norm_first": False},
    ),
    "lstm-tiny": (LSTM_LLM, TINY_RNN),
    "lstm-between": (LSTM_LLM, {**TINY_RNN, "num_layers": 2, "dropout_between_layers": 0.2}),
    "lstm-l5": (LSTM_LLM, {}),
    "stack-rnn-tiny": (
        StackRNN,
        {"embedding_dim": 2, "hidden_dim": 3, "num_stacks": 1, "stack_size": 2, "top": 1},
    ),
    "stack-rnn-default": (StackRNN, {}),
    "rnn-tiny": (RNN, TINY_RNN),
    "rnn-relu": (RNN, {**TINY_RNN, "hidden_dim": 6, "num_layers": 2, "nonlinearity": "relu"}),
    "rnn-between": (RNN, {**TINY_RNN, "num_layers": 2, "dropout_between_layers": 0.2}),
    "rnn-l5": (RNN, {}),
    "gru-tiny": (GRU, TINY_RNN),
    "gru-between": (GRU, {**TINY_RNN, "num_layers": 2, "dropout_between_layers": 0.2}),
    "gru-l5": (GRU, {}),
    "deltanet-tiny": (DeltaNet, TINY_DELTA),
    "deltanet-signed": (DeltaNet, {"d_model": 6, "num_heads": 1, "d_conv": 1, "eigenvalues": [-1, 1]}),
    "deltanet-default": (DeltaNet, {}),
    "gated-deltanet-tiny": (GatedDeltaNet, TINY_DELTA),
    "gated-deltanet-default": (GatedDeltaNet, {}),
    "deltaproduct-tiny": (DeltaProduct, {**TINY_DELTA, "num_writes": 3}),
    "deltaproduct-default": (DeltaProduct, {}),
    "linear-tiny": (LinearLLM, {"embedding_dim": 2, "max_data_length": 19}),
    "linear-no-bias": (LinearLLM, {"embedding_dim": 3, "bias": False}),
    "linear-l5": (LinearLLM, {}),
    "mamba-tiny": (MambaLM, {"d_model": 2, "d_state": 1, "d_conv": 1, "n_layers": 1, "expand": 1}),
    "mamba-odd": (MambaLM, {"d_model": 5, "d_state": 3, "d_conv": 3, "n_layers": 2, "expand": 3}),
    "mamba-paper": (MambaLM, {"d_model": 32, "d_state": 16, "n_layers": 10}),
    "mamba-py": (MambaLM, {"d_model": 8, "n_layers": 2, "init": "mamba_py"}),
    "mamba-l5": (MambaLM, {}),
    "mamba-signed": (MambaLM, {"d_model": 8, "n_layers": 2, "eigenvalues": [-1, 1]}),
    "ffnn-tiny": (FFNN, {"order": 2, "embedding_dim": 1, "hidden_dim": 1}),
    "ffnn-default": (FFNN, {}),
    "ffnn-not-direct": (FFNN, {"order": 9, "direct": False}),
    **{f"ngram-{smoothing}": (NGramLM, {"smoothing": smoothing}) for smoothing in SMOOTHINGS},
    "ngram-long-pruned": (NGramLM, {"order": 7, "min_count": 2}),
    "normative-one-state": (NormativeLM, {"states": 1, "max_modulo": 1}),
    "normative-default": (NormativeLM, {}),
    "oracle-nested": (OracleLM, {"process": get_grammar("L5", max_length=16).process}),
    "oracle-counted": (OracleLM, {"process": get_grammar("L6", max_length=8).process}),
    "xlstm-tiny": (xLSTMLMModel, {**TINY_XLSTM, "slstm_at": [0]}),
    "xlstm-only-mlstm": (xLSTMLMModel, {**TINY_XLSTM, "slstm_at": [], "num_heads": 3, "qkv_proj_blocksize": 6}),
    "xlstm-only-slstm": (xLSTMLMModel, {**TINY_XLSTM, "slstm_at": "all", "num_heads": 2, "conv1d_kernel_size": 0}),
    "xlstm-odd": (xLSTMLMModel, {**TINY_XLSTM, "embedding_dim": 10, "num_heads": 5, "slstm_at": [1]}),
    "xlstm-paper": (xLSTMLMModel, {**CPU_XLSTM, "num_blocks": 6, "embedding_dim": 64}),
    "xlstm-l5": (xLSTMLMModel, CPU_XLSTM),
    "seq2seq-tiny": (Seq2Seq, TINY_RNN),
    "seq2seq-none": (Seq2Seq, {"attention": "none", "num_layers": 2}),
    "seq2seq-general": (Seq2Seq, {"attention": "general", "cell": "gru", "embedding_dim": 3}),
    "seq2seq-additive": (Seq2Seq, {"attention": "additive", "num_layers": 2, "dropout": 0.1, "teacher_forcing": 0.5}),
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
            "signed": {"eigenvalues": [-1, 1], "num_layers": 2},
            "residual-norm": {"residual": True, "norm": "rms", "num_layers": 3},
        }.items()
    },
}
NUM_TOKENS = 7


def make(name):
    """A model with its initial weights, or fitted to random rows if it is fitted by counting."""
    architecture, arguments = MODELS[name]
    model = architecture(num_tokens=NUM_TOKENS, **arguments)
    if model.fitted_by_counting:
        rows = torch.randint(0, NUM_TOKENS, (40, 30), generator=torch.Generator().manual_seed(0))
        model.fit_counts([rows[:30]], [rows[30:]])
    return model
