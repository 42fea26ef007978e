"""The CPU implementations of xLSTM give the values and gradients of the package."""

import copy

import pytest
import torch
from sizes import MODELS, NUM_TOKENS, make
from torch import nn

from rule_extrapolation.models.xlstm import xlstm, xLSTMLMModel
from rule_extrapolation.ops.block_diagonal import block_diagonal
from rule_extrapolation.ops.causal_conv import causal_conv
from rule_extrapolation.ops.mlstm import Gates, mlstm_step, parallel_mlstm
from rule_extrapolation.ops.slstm import slstm

# Imported after our model, which makes the import work on machines with a GPU but without the CUDA toolkit.
from xlstm.blocks.mlstm.backends import parallel_stabilized_simple, recurrent_step_stabilized_simple  # isort: skip
from xlstm.blocks.slstm.src.vanilla import slstm_forward, slstm_pointwise_function_registry  # isort: skip

SIZES = [name for name, (model, _) in MODELS.items() if model is xLSTMLMModel]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def gradients(outputs, inputs):
    """The gradients of a randomly weighted sum."""
    torch.manual_seed(1)
    return torch.autograd.grad((outputs * torch.randn(outputs.shape)).sum(), inputs, retain_graph=True)


def assert_same(ours, theirs, inputs, tolerance=1e-10):
    """Compare values and gradients, relative to the largest absolute value."""
    for mine, reference in zip((ours, *gradients(ours, inputs)), (theirs, *gradients(theirs, inputs))):
        scale = reference.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(mine / scale, reference / scale, rtol=0, atol=tolerance)


def leaves(*shapes, dtype=torch.float64):
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def pair(size, dtype):
    """Our model and the package's with the same weights, none of which is zero."""
    ours = make(size).to(dtype)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    theirs = xlstm.xLSTMLMModel(copy.deepcopy(ours.model.config)).to(dtype)
    theirs.load_state_dict(ours.model.state_dict())
    return ours, theirs


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("size", SIZES)
def test_models_equal_the_packages_in_value_and_gradient(size, length, dtype):
    ours, theirs = pair(size, dtype)
    tokens = torch.randint(0, NUM_TOKENS, (3, length))
    logits, expected = ours(tokens), theirs(tokens).mT
    torch.testing.assert_close(logits, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    weight = torch.randn_like(logits)
    for scores in (logits, expected):
        (scores * weight).sum().backward()
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        scale = reference.grad.abs().max().clamp_min(1e-3)
        # Normalisation of heads with two features divides by differences that may be small.
        torch.testing.assert_close(mine.grad / scale, reference.grad / scale, rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("size", SIZES)
def test_steps_equal_the_packages(size):
    ours, theirs = pair(size, torch.float64)
    state, their_state = ours.init_state(3), {}
    for token in torch.randint(0, NUM_TOKENS, (9, 3)):
        logits, state = ours.step(token, state)
        expected, their_state = theirs.step(token[:, None], their_state)
        torch.testing.assert_close(logits, expected[:, 0], rtol=1e-10, atol=1e-10)


def test_the_packages_classes_stay_unchanged():
    _, theirs = pair("xlstm-l5", torch.float32)
    assert {type(module).__module__.split(".")[0] for module in theirs.modules()} == {"xlstm", "torch"}
    cells = [module for module in theirs.modules() if hasattr(module, "backend_fn")]
    assert {cell.backend_fn for cell in cells} == {parallel_stabilized_simple}
    assert {cell.backend_fn_step for cell in cells} == {recurrent_step_stabilized_simple}


def test_under_autocast_the_packages_code_is_used():
    ours, theirs = pair("xlstm-paper", torch.float32)
    tokens = torch.randint(0, NUM_TOKENS, (3, 9))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(tokens), theirs(tokens).mT)
        assert torch.equal(ours.prefill(tokens)[0].isfinite().all(), torch.tensor(True))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gate_scale", [0.5, 10.0])
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 7, 5), (3, 4, 33, 64), (1, 2, 100, 3)])
def test_parallel_mlstm(shape, gate_scale, dtype):
    """Large gates exercise every branch of the normaliser, and its eps."""
    inputs = leaves(shape, shape, shape, (*shape[:3], 1), (*shape[:3], 1), dtype=dtype)
    scaled = [*inputs[:3], gate_scale * inputs[3], gate_scale * inputs[4]]
    assert_same(parallel_mlstm(*scaled), parallel_stabilized_simple(*scaled), inputs, 10 * TOLERANCE[dtype])


def test_mlstm_steps():
    inputs = leaves(*[(2, 3, 9, 4)] * 3, *[(2, 3, 9, 1)] * 2)
    state = their_state = [torch.zeros(2, 3, *shape, dtype=torch.float64) for shape in ((4, 4), (4, 1), (1, 1))]
    for parts in zip(*(x.split(1, 2) for x in inputs)):
        output, state = mlstm_step(*state, *parts)
        # The package's function changes the shapes of its arguments.
        expected, their_state = recurrent_step_stabilized_simple(*their_state, *(part.clone() for part in parts))
        assert_same(output, expected, inputs)
        for mine, reference in zip(state, their_state):
            torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("time", "heads", "width"), [(1, 1, 2), (2, 3, 5), (9, 4, 8)])
@pytest.mark.parametrize("fresh", [True, False])
def test_slstm(time, heads, width, fresh):
    """From zeros, for which the first maximum differs, and from a state, with the gradients of all states."""
    x, recurrent, state = leaves((time, 2, 4 * heads * width), (heads, 4 * width, width), (4, 2, heads * width))
    start = 0 * state if fresh else state.exp()  # n is positive
    pointwise = slstm_pointwise_function_registry["slstm"]
    bias = torch.zeros(4 * heads * width, dtype=x.dtype)
    expected, *_ = slstm_forward(x, start, recurrent, bias, pointwise)
    assert_same(slstm(x, start, recurrent), expected, (x, recurrent) if fresh else (x, recurrent, state))


@pytest.mark.parametrize(
    ("blocks", "out_width", "in_width"), [(1, 3, 2), (5, 4, 4), (64, 4, 4), (12, 7, 7), (3, 70, 90)]
)
def test_block_diagonal(blocks, out_width, in_width):
    x, weight = leaves((2, 3, blocks * in_width), (blocks, out_width, in_width))
    assert_same(block_diagonal(x, weight), x @ torch.block_diag(*weight).mT, (x, weight))


@pytest.mark.parametrize(("time", "kernel"), [(1, 4), (3, 4), (9, 4), (9, 2), (5, 1)])
def test_causal_conv(time, kernel):
    """The input is a slice, as in the package."""
    wide, weight, bias = leaves((2, time, 10), (6, kernel), 6)
    x = wide[:, :, :6]
    padded = nn.functional.pad(x.mT, (kernel - 1, 0))
    expected = nn.functional.conv1d(padded, weight[:, None], bias, groups=6).mT
    assert_same(causal_conv(x, weight, bias), expected, (wide, weight, bias))


def test_gradients_equal_finite_differences():
    assert torch.autograd.gradcheck(parallel_mlstm, leaves(*[(2, 2, 4, 3)] * 3, *[(2, 2, 4, 1)] * 2))
    x, state, recurrent = leaves((3, 2, 16), (4, 2, 4), (2, 8, 2))
    assert torch.autograd.gradcheck(lambda x, state, r: slstm(x, state.exp(), r), (x, state, recurrent))
    assert torch.autograd.gradcheck(block_diagonal, leaves((2, 6), (3, 2, 2)))
    assert torch.autograd.gradcheck(causal_conv, leaves((2, 5, 3), (3, 4), 3))


def test_extreme_gates_stay_finite():
    inputs = leaves(*[(1, 2, 9, 4)] * 3, *[(1, 2, 9, 1)] * 2, dtype=torch.float32)
    x, recurrent = leaves((9, 1, 32), (2, 16, 4), dtype=torch.float32)
    for scale in (300.0, -60.0):  # below -88, exp(-m) overflows float32, as in the package
        output = parallel_mlstm(*inputs[:3], scale + inputs[3], -scale + inputs[4])
        states = slstm(scale + x, torch.zeros(4, 1, 8), recurrent)
        for outputs, leaf in ((output, inputs), (states, (x, recurrent))):
            assert outputs.isfinite().all()
            assert all(gradient.isfinite().all() for gradient in gradients(outputs, leaf))


def test_gates_do_not_change_incoming_gradients_in_place():
    q, k, v, weight, bias = (torch.randn(size, requires_grad=True) for size in (*[(2, 3, 4)] * 3, (2, 12), (2,)))

    def loss(outputs):
        q, k, v, gates = outputs
        return ((q + k + v) * torch.arange(4.0)).sum() + (gates**2).sum()

    x = torch.cat([q, k, v], 2)
    inputs = (q, k, v, weight, bias)
    expected = torch.autograd.grad(loss((q, k, v, x @ weight.T + bias)), inputs)
    torch.testing.assert_close(torch.autograd.grad(loss(Gates.apply(*inputs)), inputs), expected)
