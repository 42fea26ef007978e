"""The linear recurrence, minGRU and minLSTM, compared with minGRU-pytorch and with copying as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from minGRU_pytorch.minGRU import heinsen_associative_scan_log, minGRU
from minGRU_pytorch.minLSTM import minLSTM
from torch import Tensor, nn

from benchmarks.comparison import Comparison
from benchmarks.table import run
from rule_extrapolation.models.mingru import MinGRULayer
from rule_extrapolation.models.minimal_rnn import MinimalRNNLayer
from rule_extrapolation.models.minlstm import MinLSTMLayer
from rule_extrapolation.ops import linear_recurrence

CHANNELS = 128
SIZES = ((128, 256), (4, 8192))
"""(batch, time)"""

PEER = "minGRU-pytorch 0.2.1"
LAYERS = {"minGRU": (MinGRULayer, minGRU), "minLSTM": (MinLSTMLayer, minLSTM)}


def comparisons(sizes: Sequence[tuple[int, int]] = SIZES) -> Iterator[Comparison]:
    torch.manual_seed(0)
    yield from recurrence_alone(*sizes[0])
    for batch, time in sizes:
        for name, (ours, theirs) in LAYERS.items():
            yield layer_comparison(name, ours, theirs, batch, time)


def recurrence_alone(batch: int, time: int) -> Iterator[Comparison]:
    log_a, log_b = F.logsigmoid(torch.randn(2, batch, time, CHANNELS))
    # The peer takes logarithms, ours does not.
    log_a, log_b, a, b = (x.requires_grad_() for x in (log_a, log_b, log_a.exp(), log_b.exp()))
    h0, d = torch.zeros(batch, CHANNELS), torch.randn(batch, time, CHANNELS)
    size = f"recurrence {batch} x {time} x {CHANNELS}"

    def forward() -> Tensor:
        with torch.no_grad():
            return linear_recurrence.auto(a, b, h0)

    def ours() -> Sequence[Tensor]:
        return torch.autograd.grad(linear_recurrence.auto(a, b, h0), (a, b), d)

    def theirs() -> Sequence[Tensor]:
        return torch.autograd.grad(heinsen_associative_scan_log(log_a, log_b), (log_a, log_b), d)

    yield Comparison(f"{size}, forward and backward", ours, theirs, f"{PEER}'s log-space scan", 20)
    # The forward pass reads a and b and writes h. The backward pass reads a, h and dh and writes da and db.
    copy = "torch copy of the same bytes"
    yield Comparison(f"{size}, forward", forward, copy_of(3 * a.numel()), copy, 0.4)
    yield Comparison(f"{size}, forward and backward", ours, copy_of(8 * a.numel()), copy, 0.3)


def copy_of(numbers: int) -> Callable[[], Tensor]:
    """A copy that reads and writes that many numbers in total."""
    source, target = torch.rand(2, numbers // 2)
    return lambda: target.copy_(source)


def layer_comparison(
    name: str, ours: type[MinimalRNNLayer], theirs: type[nn.Module], batch: int, time: int
) -> Comparison:
    x, d = torch.randn(2, batch, time, CHANNELS)
    layer, peer = ours(CHANNELS, CHANNELS, log_space=True, scan="auto"), theirs(CHANNELS)
    h0 = torch.zeros(batch, CHANNELS)
    with torch.no_grad():
        layer.linear.bias.zero_()
        candidate, *gates = peer.get_parameter(next(iter(peer.state_dict()))).chunk(layer.num_gates + 1)
        layer.linear.weight.copy_(torch.cat([*gates, candidate]))

    def work(
        function: Callable[[Tensor], Tensor], module: nn.Module, dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        """The output, and the gradients with respect to the input and the weights."""
        inputs = x.to(dtype).requires_grad_()
        weight = next(parameter for parameter in module.parameters() if parameter.ndim == 2)
        output = function(inputs)
        return [output.detach(), *torch.autograd.grad(output, (inputs, weight), d.to(dtype))]

    def run_ours() -> list[Tensor]:
        return work(lambda x: layer(x, h0), layer)

    def run_theirs() -> list[Tensor]:
        return work(peer, peer)

    layer64 = ours(CHANNELS, CHANNELS, log_space=True, scan="sequential").double()
    layer64.load_state_dict(layer.state_dict())
    exact = work(lambda x: layer64(x, h0.double()), layer64, torch.float64)
    *most, weight = run_theirs()
    candidate, *gates = weight.chunk(layer.num_gates + 1)
    errors = [relative_error(run_ours(), exact), relative_error([*most, torch.cat([*gates, candidate])], exact)]
    note = f"relative error {errors[0]:.1e}, theirs {errors[1]:.1e}"
    return Comparison(f"{name} layer {batch} x {time} x {CHANNELS}", run_ours, run_theirs, PEER, 4, note=note)


def relative_error(values: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The maximum over the tensors of the norm of the error divided by the norm of the exact values."""
    return max(float((value - right).norm() / right.norm()) for value, right in zip(values, exact))


if __name__ == "__main__":
    run(comparisons())
