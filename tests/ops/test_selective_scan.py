"""Both implementations of the selective scan give the values and gradients of its definition."""

import pytest
import torch
from op_testing import TOLERANCE, scan_inputs

from rule_extrapolation.ops.selective_scan import reference, selective_scan


def scan_definition(x, dt, A, B, C, h0, signed=False):
    """One batch row, step and channel at a time, as algorithm 2 of the paper says it."""
    rows, last = [], []
    for i in range(x.shape[0]):
        outputs, states = [], []
        for d in range(x.shape[2]):
            h, channel = h0[i, d], []
            for t in range(x.shape[1]):
                decay = (dt[i, t, d] * A[d]).exp()
                h = (2 * decay - 1 if signed else decay) * h + dt[i, t, d] * B[i, t] * x[i, t, d]
                channel.append((C[i, t] * h).sum())
            outputs.append(torch.stack(channel))
            states.append(h)
        rows.append(torch.stack(outputs, 1))
        last.append(torch.stack(states))
    return torch.stack(rows), torch.stack(last)


@pytest.mark.parametrize("scan", [selective_scan, reference.selective_scan], ids=["auto", "reference"])
class TestBothSelectiveScans:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("signed", [False, True])
    @pytest.mark.parametrize(("time", "states"), [(1, 3), (2, 1), (3, 2), (4, 3), (5, 4), (17, 3), (33, 2)])
    def test_equals_definition_in_value_and_gradient(self, scan, time, states, signed, dtype):
        inputs = scan_inputs(2, time, 3, states, dtype)
        actual, expected = scan(*inputs, signed=signed), scan_definition(*inputs, signed)
        weights = [torch.randn_like(tensor) for tensor in expected]
        for ours, theirs in zip(actual, expected):
            torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        loss, expected_loss = (sum((w * t).sum() for w, t in zip(weights, both)) for both in (actual, expected))
        for ours, theirs in zip(
            torch.autograd.grad(loss, inputs), torch.autograd.grad(expected_loss, inputs), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

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


@pytest.mark.parametrize("channels", [3, 130])
def test_selective_scan_in_several_stretches_and_blocks(channels):
    inputs = scan_inputs(2, 50, channels, 5, torch.float64)
    y, h = selective_scan(*inputs)
    expected = scan_definition(*inputs)
    torch.testing.assert_close((y, h), expected)
    gradients = torch.autograd.grad(y.sum() + h.square().sum(), inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected[0].sum() + expected[1].square().sum(), inputs))
