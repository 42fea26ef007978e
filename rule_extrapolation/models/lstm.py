from __future__ import annotations

from torch import Tensor, nn

from rule_extrapolation.models.recurrent import RecurrentModel


class LSTM_LLM(RecurrentModel):
    """A unidirectional LSTM (Hochreiter & Schmidhuber 1997) between an embedding and a linear layer.

    The state is (h, c), each of shape (num_layers, B, hidden_dim). Arguments and errors are those of RecurrentModel.
    """

    layers_class = nn.LSTM
    layers_name = "lstm"

    def init_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        zeros = super().init_state(batch_size)
        return zeros, zeros
