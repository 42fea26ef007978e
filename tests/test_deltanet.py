"""DeltaNet, Gated DeltaNet and DeltaProduct, compared with their papers' equations in plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.models.deltanet import DeltaNet
from rule_extrapolation.models.deltaproduct import DeltaProduct
from rule_extrapolation.models.gated_deltanet import GatedDeltaNet

SIZES = {"d_model": 6, "num_layers": 1, "num_heads": 2, "d_conv": 3, "mlp_ratio": 1}


def silu(x):
    return x / (1 + (-x).exp())


def rms(x, weight):
    return x / (x.pow(2).mean() + torch.finfo(x.dtype).eps).sqrt() * weight


def by_hand(model, tokens, writes, signed):
    """The logits of one row, token by token and head by head, with matrices as in the papers: S v k^T, o = S q."""
    [block] = model.blocks
    layer, width, size = block["delta"], 6, 3
    projected, logits = [], []
    memory = [torch.zeros(size, size, dtype=torch.float64) for _ in range(2)]
    for token in tokens:
        x = model.embedding.weight[token]
        y = rms(x, block["norm"].weight)
        projected.append(layer.in_proj.weight @ y)
        channels = []
        for c in range(len(projected[0])):
            taps = layer.conv1d.weight[c, 0]
            past = [projected[-1 - i][c] if i < len(projected) else 0 for i in range(3)]
            channels.append(silu(sum(taps[2 - i] * past[i] for i in range(3))))
        mixed = torch.stack(channels)
        strength = 1 / (1 + (-(layer.strength.weight @ y + layer.strength.bias)).exp()) * (2 if signed else 1)
        outputs = []
        for head in range(2):
            part = slice(head * size, (head + 1) * size)
            if layer.gated:
                raw = layer.decay.weight[head] @ y + layer.decay.bias[head]
                memory[head] = memory[head] * (-layer.A_log[head].exp() * (1 + raw.exp()).log()).exp()
            for write in range(writes):
                k = mixed[width * (1 + write) : width * (2 + write)][part]
                v = mixed[width * (1 + writes + write) : width * (2 + writes + write)][part]
                k, beta = k / k.norm(), strength[2 * write + head]
                memory[head] = memory[head] @ (torch.eye(size) - beta * torch.outer(k, k)) + beta * torch.outer(v, k)
            q = mixed[:width][part]
            outputs.append(rms(memory[head] @ (q / q.norm()), layer.norm.weight))
        output = torch.cat(outputs)
        if layer.gated:
            output = output * silu(layer.gate.weight @ y)
        x = x + layer.out_proj.weight @ output
        gate, up = (block["mlp"].up.weight @ rms(x, block["mlp_norm"].weight)).chunk(2)
        x = x + block["mlp"].down.weight @ (silu(gate) * up)
        logits.append(model.head.weight @ rms(x, model.norm.weight))
    return torch.stack(logits, 1)


@pytest.mark.parametrize(
    ("architecture", "options", "writes", "signed"),
    [
        (DeltaNet, {}, 1, False),
        (DeltaNet, {"eigenvalues": [-1, 1]}, 1, True),
        (GatedDeltaNet, {}, 1, False),
        (DeltaProduct, {"num_writes": 3}, 3, True),
    ],
)
def test_equals_the_equations(architecture, options, writes, signed):
    torch.manual_seed(0)
    model = architecture(num_tokens=7, **SIZES, **options).double()
    tokens = torch.tensor([[0, 3, 4, 4, 5, 6, 3, 1]])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0], by_hand(model, tokens[0].tolist(), writes, signed))


def test_the_state_has_a_window_and_a_matrix_for_each_head():
    [(window, matrix), _] = DeltaProduct(7, d_model=8, num_heads=2, d_conv=4, num_writes=2).init_state(1)
    assert (window.numel(), matrix.numel()) == (3 * 5 * 8, 2 * 4 * 4)


def test_reflections_track_parity_exactly():
    """One head that reflects on a key whenever it reads a 1: the sign of its memory is the parity."""
    from rule_extrapolation.ops.delta_rule import delta_rule

    bits = torch.randint(2, (1, 1, 200), generator=torch.Generator().manual_seed(0))
    k = torch.zeros(1, 1, 200, 2)
    k[..., 0] = 1
    memory = torch.tensor([[1.0], [0.0]])[None, None]
    output, _ = delta_rule(k, k, torch.zeros(1, 1, 200, 1), 2.0 * bits, None, memory)
    assert output[0, 0, :, 0].tolist() == [math.cos(math.pi * n) for n in bits[0, 0].cumsum(0).tolist()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "num_heads=5: must divide d_model=64"),
        ({"eigenvalues": [0, 2]}, "eigenvalues=[0, 2]: must be [0,1] or [-1,1]"),
        ({"num_writes": 0}, "num_writes=0: must be greater than 0"),
    ],
)
def test_invalid_sizes_are_refused(options, message):
    with pytest.raises(ConfigError) as error:
        DeltaProduct(7, **options)
    assert str(error.value) == message
