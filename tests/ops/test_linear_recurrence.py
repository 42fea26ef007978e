"""All implementations of the linear recurrence give the values and gradients of its definition."""

import pytest
import torch
from op_testing import SHAPES, TOLERANCE, assert_same, recurrence_inputs, run

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.ops import linear_recurrence


def coefficients(batch, time, channels, dtype, seed=0):
    """Gates in (0, 1) and positive inputs, as the minimal RNNs make them."""
    torch.manual_seed(seed)
    log_a, log_b = torch.nn.functional.logsigmoid(3 * torch.randn(2, batch, time, channels, dtype=dtype))
    return log_a.requires_grad_(), log_b.requires_grad_(), torch.rand(batch, channels, dtype=dtype).requires_grad_()


def definition(log_a, log_b, h0):
    """h_t = a_t h_{t-1} + b_t, one batch row, step and channel at a time."""
    a, b = log_a.exp(), log_b.exp()
    rows = []
    for i in range(a.shape[0]):
        h, states = h0[i], []
        for t in range(a.shape[1]):
            h = a[i, t] * h + b[i, t]
            states.append(h)
        rows.append(torch.stack(states))
    return torch.stack(rows)


WAYS = {
    "auto": lambda log_a, log_b, h0: linear_recurrence.auto(log_a.exp(), log_b.exp(), h0),
    "sequential": lambda log_a, log_b, h0: linear_recurrence.sequential(log_a.exp(), log_b.exp(), h0),
    "parallel": lambda log_a, log_b, h0: linear_recurrence.parallel(log_a.exp(), log_b.exp(), h0),
    "log_space": linear_recurrence.log_space,
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("time", [1, 2, 3, 33, 64, 100])
@pytest.mark.parametrize("way", WAYS)
def test_equals_definition_in_value_and_gradient(way, time, dtype):
    inputs = coefficients(2, time, 3, dtype)
    assert_same(WAYS[way](*inputs), definition(*inputs), inputs, dtype)


@pytest.mark.parametrize("way", WAYS)
def test_gradcheck(way):
    assert torch.autograd.gradcheck(WAYS[way], coefficients(2, 5, 2, torch.float64))


@pytest.mark.parametrize("way", WAYS)
def test_a_sequence_continues_from_a_state_halfway(way):
    log_a, log_b, h0 = coefficients(2, 20, 3, torch.float64)
    whole = WAYS[way](log_a, log_b, h0)
    first = WAYS[way](log_a[:, :7], log_b[:, :7], h0)
    rest = WAYS[way](log_a[:, 7:], log_b[:, 7:], first[:, -1])
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=1e-10, atol=1e-10)


def test_log_space_starts_from_a_zero_state():
    log_a, log_b, h0 = coefficients(2, 9, 3, torch.float64)
    h0 = torch.zeros_like(h0).requires_grad_()
    actual = linear_recurrence.log_space(log_a, log_b, h0)
    torch.testing.assert_close(actual, definition(log_a, log_b, h0), rtol=1e-10, atol=1e-10)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(actual.sum(), (log_a, log_b, h0)))


def test_an_unknown_scan_is_refused_with_the_closest_name():
    assert linear_recurrence.scan_named("parallel") is linear_recurrence.parallel
    with pytest.raises(ConfigError, match="did you mean sequential"):
        linear_recurrence.scan_named("sequentiel")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_any_shape(shape, dtype):
    inputs = recurrence_inputs(*shape, dtype)
    assert_same(linear_recurrence.auto(*inputs), linear_recurrence.sequential(*inputs), inputs, dtype)


class TestAuto:
    def test_takes_any_strides_and_changes_nothing(self):
        inputs = [tensor.detach() for tensor in recurrence_inputs(4, 9, 6)]
        strided = [tensor.mT.contiguous().mT for tensor in inputs]
        before = [tensor.clone() for tensor in strided]
        torch.testing.assert_close(linear_recurrence.auto(*strided), linear_recurrence.auto(*inputs))
        assert all(torch.equal(now, then) for now, then in zip(strided, before))
        expanded = inputs[0][:1, :1].expand(4, 9, 6)
        expected = linear_recurrence.sequential(expanded, *inputs[1:])
        torch.testing.assert_close(linear_recurrence.auto(expanded, *inputs[1:]), expected)

    def test_starts_from_zero_without_a_state_and_gives_no_steps_for_none(self):
        a, b, h0 = recurrence_inputs(2, 5, 3)
        assert torch.equal(linear_recurrence.auto(a, b), linear_recurrence.auto(a, b, torch.zeros_like(h0)))
        nothing = linear_recurrence.auto(a[:, :0], b[:, :0], h0)
        assert nothing.shape == (2, 0, 3)
        assert torch.equal(torch.autograd.grad(nothing.sum(), h0)[0], torch.zeros_like(h0))

    @pytest.mark.parametrize("wanted", range(3))
    def test_one_gradient_alone(self, wanted):
        inputs = recurrence_inputs(2, 5, 3)
        whole = torch.autograd.grad(linear_recurrence.auto(*inputs).square().sum(), inputs)
        inputs = [tensor.detach().requires_grad_(i == wanted) for i, tensor in enumerate(inputs)]
        linear_recurrence.auto(*inputs).square().sum().backward()
        assert torch.equal(inputs[wanted].grad, whole[wanted])

    def test_gradients_of_gradients(self):
        inputs = recurrence_inputs(2, 4, 3, torch.float64)
        assert torch.autograd.gradgradcheck(linear_recurrence.auto, inputs)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_low_precision_is_computed_in_float32(self, dtype):
        low = [tensor.detach().to(dtype) for tensor in recurrence_inputs(2, 33, 5)]
        expected = linear_recurrence.auto(*(tensor.float() for tensor in low)).to(dtype)
        assert torch.equal(linear_recurrence.auto(*low), expected)

    def test_shapes_that_do_not_fit_are_refused(self):
        a, b, h0 = recurrence_inputs(2, 5, 3)
        for wrong in ((a, b[:, 1:], h0), (a, b, h0[:1]), (a[0], b[0], h0)):
            with pytest.raises((ValueError, IndexError)):
                linear_recurrence.auto(*wrong)


def test_triton():
    """The CUDA kernels in Triton's interpreter."""
    pytest.importorskip("triton")
    script = """
import torch
from rule_extrapolation.ops import linear_recurrence
from rule_extrapolation.ops.linear_recurrence import cuda_triton
for shape in ((2, 5, 3), (1, 1, 1), (3, 7, 33), (2, 0, 3), (0, 2, 3)):
    for dtype in (torch.float32, torch.float64):
        a, b, dh = torch.rand(3, *shape, dtype=dtype)
        h0 = torch.rand(shape[0], shape[2], dtype=dtype)
        h = linear_recurrence.forward(a, b, h0)
        torch.testing.assert_close(cuda_triton.forward(a.mT.contiguous().mT, b, h0), h)
        torch.testing.assert_close(cuda_triton.backward(a, h, h0, dh), linear_recurrence.backward(a, h, h0, dh))
print("same")
"""
    assert run(script, TRITON_INTERPRET="1") == "same\n"
