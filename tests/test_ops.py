"""Every way of computing a recurrence gives the values and gradients of its definition."""

import pytest
import torch

from rule_extrapolation.ops import linear_recurrence
from rule_extrapolation.ops.selective_scan import SelectiveScan, selective_scan

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


def scan_inputs(batch, time, channels, states, dtype, seed=0):
    """x, dt, A, B, C and h0 as Mamba makes them."""
    torch.manual_seed(seed)
    x = torch.randn(batch, time, channels, dtype=dtype)
    dt = torch.rand(batch, time, channels, dtype=dtype)
    A = -torch.rand(channels, states, dtype=dtype) * states
    B, C = torch.randn(2, batch, time, states, dtype=dtype)
    h0 = torch.randn(batch, channels, states, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (x, dt, A, B, C, h0)]


def scan_definition(x, dt, A, B, C, h0):
    """One batch row, step and channel at a time, as algorithm 2 of the paper says it."""
    rows, last = [], []
    for i in range(x.shape[0]):
        outputs, states = [], []
        for d in range(x.shape[2]):
            h, channel = h0[i, d], []
            for t in range(x.shape[1]):
                h = (dt[i, t, d] * A[d]).exp() * h + dt[i, t, d] * B[i, t] * x[i, t, d]
                channel.append((C[i, t] * h).sum())
            outputs.append(torch.stack(channel))
            states.append(h)
        rows.append(torch.stack(outputs, 1))
        last.append(torch.stack(states))
    return torch.stack(rows), torch.stack(last)


@pytest.mark.parametrize("scan", [selective_scan, SelectiveScan.apply], ids=["compiled", "torch"])
class TestBothSelectiveScans:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize(("time", "states"), [(1, 3), (2, 1), (3, 2), (4, 3), (5, 4), (17, 3), (33, 2)])
    def test_equals_definition_in_value_and_gradient(self, scan, time, states, dtype):
        inputs = scan_inputs(2, time, 3, states, dtype)
        actual, expected = scan(*inputs), scan_definition(*inputs)
        weights = [torch.randn_like(tensor) for tensor in expected]
        for ours, reference in zip(actual, expected):
            torch.testing.assert_close(ours, reference, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        loss, reference_loss = (sum((w * t).sum() for w, t in zip(weights, both)) for both in (actual, expected))
        for gradient, reference in zip(
            torch.autograd.grad(loss, inputs), torch.autograd.grad(reference_loss, inputs), strict=True
        ):
            torch.testing.assert_close(gradient, reference, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

    @pytest.mark.parametrize("time", [1, 2, 7])
    def test_gradcheck(self, scan, time):
        assert torch.autograd.gradcheck(scan, scan_inputs(2, time, 2, 3, torch.float64))

    def test_no_rows(self, scan):
        y, h = scan(*scan_inputs(0, 4, 3, 2, torch.float32))
        y.sum().backward()
        assert (y.shape, h.shape) == ((0, 4, 3), (0, 3, 2))


class TestSelectiveScan:
    def test_starts_from_zero_and_goes_on_from_a_state_halfway(self):
        *inputs, h0 = scan_inputs(2, 20, 3, 4, torch.float64)
        x, dt, A, B, C = inputs
        whole, last = selective_scan(*inputs)
        torch.testing.assert_close((whole, last), selective_scan(*inputs, torch.zeros_like(h0)))
        first, state = selective_scan(x[:, :7], dt[:, :7], A, B[:, :7], C[:, :7])
        rest, end = selective_scan(x[:, 7:], dt[:, 7:], A, B[:, 7:], C[:, 7:], state)
        torch.testing.assert_close((torch.cat([first, rest], 1), end), (whole, last))

    def test_changes_no_argument_and_takes_any_strides(self):
        inputs = [tensor.detach() for tensor in scan_inputs(2, 9, 3, 4, torch.float64)]
        strided = [tensor.mT.contiguous().mT for tensor in inputs]
        assert not strided[0].is_contiguous()
        before = [tensor.clone() for tensor in strided]
        torch.testing.assert_close(selective_scan(*strided), selective_scan(*inputs))
        assert all(torch.equal(now, then) for now, then in zip(strided, before))

    def test_lower_precision_around_it_does_not_reach_it(self):
        x, dt, A, B, C, h0 = scan_inputs(2, 33, 3, 4, torch.float32)
        low = [tensor.bfloat16() for tensor in (x, dt, A, B, C, h0)]
        with torch.autocast("cpu", torch.bfloat16):
            y, h = selective_scan(*low)
        expected, last = selective_scan(*(tensor.float() for tensor in low))
        torch.testing.assert_close((y, h), (expected.bfloat16(), last), rtol=0, atol=0)
