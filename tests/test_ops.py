"""The linear recurrence: every way of computing it gives the values and gradients of the definition."""

import pytest
import torch

from rule_extrapolation.ops import linear_recurrence

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


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
    "sequential": lambda log_a, log_b, h0: linear_recurrence.sequential(log_a.exp(), log_b.exp(), h0),
    "parallel": lambda log_a, log_b, h0: linear_recurrence.parallel(log_a.exp(), log_b.exp(), h0),
    "log_space": linear_recurrence.log_space,
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("time", [1, 2, 3, 33, 64, 100])
@pytest.mark.parametrize("way", WAYS)
def test_equals_definition_in_value_and_gradient(way, time, dtype):
    inputs = coefficients(2, time, 3, dtype)
    expected, actual = definition(*inputs), WAYS[way](*inputs)
    weight = torch.randn_like(expected)
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    gradients = torch.autograd.grad((actual * weight).sum(), inputs)
    for gradient, reference in zip(gradients, torch.autograd.grad((expected * weight).sum(), inputs)):
        # A gradient is itself a sum over up to `time` steps.
        torch.testing.assert_close(gradient, reference, rtol=10 * TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


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
