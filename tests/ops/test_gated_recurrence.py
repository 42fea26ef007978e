"""The recurrences of minGRU and minLSTM, compiled and in plain torch, agree with their definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from op_testing import SHAPES, TOLERANCE, assert_same, gated_inputs

from rule_extrapolation.ops import gated_recurrence, linear_recurrence
from rule_extrapolation.ops.gated_recurrence import g, reference


def definition(x, h0, gates, positive, signed=False):
    *logits, candidate = x.chunk(gates + 1, 2)
    keep = -logits[0] if gates == 1 else F.logsigmoid(logits[0]) - F.logsigmoid(logits[1])
    candidate = g(candidate) if positive else candidate
    a = keep.sigmoid()
    return linear_recurrence.sequential(2 * a - 1 if signed else a, (-keep).sigmoid() * candidate, h0)


def test_definition_is_the_papers():
    """In the notation of sections 3.1 and 3.2 and appendix B.3, for gates that do not underflow."""
    x, h0 = gated_inputs(2, 2, 9, 3, torch.float64)
    f, i, c = x.chunk(3, 2)
    h_tilde = torch.where(c >= 0, c + 0.5, c.sigmoid())
    f_share, i_share = (gate.sigmoid() / (f.sigmoid() + i.sigmoid()) for gate in (f, i))
    expected = linear_recurrence.sequential(f_share, i_share * h_tilde, h0)
    torch.testing.assert_close(definition(x, h0, 2, True), expected)
    z, c = f.sigmoid(), i
    expected = linear_recurrence.sequential(1 - z, z * c, h0)
    torch.testing.assert_close(definition(x[:, :, :6], h0, 1, False), expected)


@pytest.mark.parametrize("module", [gated_recurrence, reference], ids=["auto", "reference"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize(("gates", "name"), [(1, "mingru"), (2, "minlstm")])
def test_equals_definition_in_value_and_gradient(module, shape, dtype, positive, signed, gates, name):
    inputs = gated_inputs(gates, *shape, dtype)
    actual = vars(module)[name](*inputs, positive, signed)
    assert_same(actual, definition(*inputs, gates, positive, signed), inputs, dtype)


def test_gates_beyond_a_float_keep_their_ratio():
    """σ(f) / (σ(f) + σ(i)) where both are far below the smallest float: σ(f - i)."""
    f, i = torch.tensor([-500.0, -90, 300, -200]), torch.tensor([-490.0, -88, -300, -500])
    x = torch.stack([f, i, torch.ones(4)]).reshape(1, 1, 12).requires_grad_()
    h = gated_recurrence.minlstm(x, torch.zeros(1, 4), False)
    torch.testing.assert_close(h[0, 0], 1 - (f - i).sigmoid())
    assert torch.autograd.grad(h.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("fused", [gated_recurrence.mingru, gated_recurrence.minlstm])
def test_nan_and_infinity_are_not_hidden(fused):
    for value in (math.nan, math.inf):
        x, h0 = torch.zeros(1, 3, 4 if fused is gated_recurrence.mingru else 6), torch.zeros(1, 2)
        x[0, 1, -1] = value
        h = fused(x, h0, True)
        assert h[0, 0].isfinite().all() and not h[0, 1:, 1].isfinite().any()


@pytest.mark.parametrize("fused", [gated_recurrence.mingru, gated_recurrence.minlstm])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("positive", [True, False])
def test_gradcheck_of_gates(fused, positive, signed):
    inputs = gated_inputs(1 if fused is gated_recurrence.mingru else 2, 2, 4, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda x, h0: fused(x, h0, positive, signed), inputs)
