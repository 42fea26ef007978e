"""All implementations of an operation agree with its definition in float64 over the whole range of float32 gates."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_selective_scan import scan_definition

from rule_extrapolation.models.minimal_rnn import log_g
from rule_extrapolation.ops import dropout, gated_recurrence, linear_recurrence
from rule_extrapolation.ops.attention import causal_attention
from rule_extrapolation.ops.gated_recurrence import reference
from rule_extrapolation.ops.mlstm import mlstm_step, parallel_mlstm
from rule_extrapolation.ops.selective_scan import reference as scan_reference
from rule_extrapolation.ops.selective_scan import selective_scan
from rule_extrapolation.ops.slstm import slstm

LARGEST = torch.finfo(torch.float32).max
EDGES = [0.0, 1e-45, 1e-20, 1.0, 10.0, 30.0, 79.0, 80.0, 88.0, 90.0, 104.0, 120.0, 1e4, 1e10, 1e30, LARGEST]
"""Where exp, the sigmoid, or a product of these underflows or overflows in float32, and where not."""
GATES = st.one_of(
    st.sampled_from([sign * edge for edge in EDGES for sign in (1, -1)]),
    st.floats(-120, 120, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
STATES = st.one_of(st.sampled_from([0.0, 1e-30, 6200.0, -6200.0]), st.floats(-(2**40), 2**40, width=32))
NUMBERS = st.floats(-3, 3, width=32)
TIME, CHANNELS = 4, 2
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
few = settings(max_examples=12, deadline=None, derandomize=True, database=None)


def tensors(numbers, *shape):
    """A strategy for float32 tensors of that shape."""
    count = math.prod(shape)
    return st.lists(numbers, min_size=count, max_size=count).map(lambda values: torch.tensor(values).view(shape))


def assert_agree(actual, expected, inputs, dtype=torch.float32, gradients_of=None, tolerance=1):
    """Compare values and gradients with those in float64, relative to the largest of the tensor and of the values.

    Args:
        actual, expected: functions from ``inputs`` to a tensor.
        inputs: float32 tensors.
        gradients_of: the indices of the inputs whose gradients are compared; None is all.
        tolerance: as a multiple of that of the dtype.
    """
    results = []
    for function, precision in ((actual, dtype), (expected, torch.float64)):
        leaves = [x.to(precision).requires_grad_() for x in inputs]
        out = function(*leaves)
        wanted = leaves if gradients_of is None else [leaves[i] for i in gradients_of]
        weight = torch.linspace(-1, 1.3, out.numel(), dtype=precision).view(out.shape)
        results.append([out, *torch.autograd.grad((out * weight).sum(), wanted)])
    for ours, theirs in zip(*results, strict=True):
        scale = max(1.0, theirs.abs().max().item(), results[1][0].abs().max().item())
        assert math.isfinite(scale)
        torch.testing.assert_close(ours.double() / scale, theirs / scale, rtol=0, atol=tolerance * TOLERANCE[dtype])


def rounding(logits):
    """The error of exp(a - b) from rounding a and b in float32, in multiples of its tolerance. Where all is lost to it,
    only nan and values out of bounds are found."""
    return 4 * min(torch.finfo(torch.float32).eps * logits.abs().max().item(), 1) / TOLERANCE[torch.float32]


class TestGatedRecurrence:
    """The states are weighted means, so that none overflows."""

    @pytest.mark.parametrize("positive", [True, False])
    @pytest.mark.parametrize(("gates", "name"), [(1, "mingru"), (2, "minlstm")])
    @given(data=st.data())
    @few
    def test_agrees_with_its_definition(self, gates, name, positive, data):
        logits = data.draw(tensors(GATES, 1, TIME, gates * CHANNELS), "gates")
        candidates = data.draw(tensors(STATES, 1, TIME, CHANNELS), "candidates")
        h0 = data.draw(tensors(STATES, 1, CHANNELS), "h0")
        x = torch.cat([logits, candidates], 2)
        for module in (gated_recurrence, reference):
            for dtype in TOLERANCE:
                assert_agree(
                    lambda x, h0: vars(module)[name](x, h0, positive),  # noqa: B023
                    lambda x, h0: vars(reference)[name](x, h0, positive),
                    [x, h0],
                    dtype,
                    tolerance=2,
                )

    @pytest.mark.parametrize("scan", ["parallel", "log_space"])
    @given(gates=tensors(GATES, 1, TIME, CHANNELS), candidates=tensors(GATES, 1, TIME, CHANNELS), data=st.data())
    @few
    def test_scans_agree_with_its_definition(self, scan, gates, candidates, data):
        """With positive candidates, as log-space needs them."""
        h0 = data.draw(tensors(STATES, 1, CHANNELS), "h0")
        x = torch.cat([gates, candidates.clamp_max(1e10)], 2)

        def by_scan(x, h0):
            update, candidate = x.chunk(2, 2)
            if scan == "parallel":
                return reference.mingru(x, h0, True, recurrence=linear_recurrence.parallel)
            return linear_recurrence.log_space(F.logsigmoid(-update), F.logsigmoid(update) + log_g(candidate), h0)

        assert_agree(by_scan, lambda x, h0: reference.mingru(x, h0, True), [x, h0], tolerance=5)


def test_a_large_state_survives_a_gate_that_keeps_it():
    for gate, name in ((-80.0, "mingru"), (80.0, "minlstm")):
        x = torch.tensor([gate, 0.0] if name == "mingru" else [gate, -gate, 0.0])[None, None]
        assert vars(gated_recurrence)[name](x, torch.tensor([[6200.0]]), False).item() == 6200


def test_two_small_gates_that_differ_keep_their_ratio():
    """e^-f and e^-i overflow, and f and i are so large that a float has no digits for small terms beside them."""
    for f, i, expected in ((-1e10, -1e10 + 1024, 0.0), (-1e10 + 1024, -1e10, 7.0), (-3e38, -3e38, 3.5)):
        x = torch.tensor([[[f, i, 0.0]]])
        assert gated_recurrence.minlstm(x, torch.tensor([[7.0]]), False).item() == expected


@given(a=tensors(st.floats(-1, 1, width=32), 1, TIME, CHANNELS), data=st.data())
@few
def test_linear_recurrence(a, data):
    b, h0 = data.draw(tensors(STATES, 1, TIME, CHANNELS), "b"), data.draw(tensors(STATES, 1, CHANNELS), "h0")
    for scan in (linear_recurrence.auto, linear_recurrence.sequential, linear_recurrence.parallel):
        for dtype in TOLERANCE:
            assert_agree(scan, linear_recurrence.sequential, [a, b, h0], dtype, tolerance=2)


@pytest.mark.parametrize("scan", [selective_scan, scan_reference.selective_scan], ids=["auto", "reference"])
@given(data=st.data())
@few
def test_selective_scan(scan, data):
    """Decays from exp(-1e-45) to exp(-3e38), with inputs that are small where the step is large."""
    dt = data.draw(tensors(GATES, 1, TIME, CHANNELS), "dt").abs().clamp_max(1e15)
    A = -data.draw(tensors(GATES, CHANNELS, 2), "A").abs().clamp_max(1e15)
    x = data.draw(tensors(NUMBERS, 1, TIME, CHANNELS), "x") / dt.clamp_min(1)
    B, C = data.draw(tensors(NUMBERS, 2, 1, TIME, 2), "B, C")
    h0 = data.draw(tensors(STATES, 1, CHANNELS, 2), "h0")

    def both(scan):
        def run(*inputs):
            y, h = scan(*inputs)
            return torch.cat([y.flatten(), h.flatten()])

        return run

    for dtype in TOLERANCE:
        assert_agree(both(scan), both(scan_definition), [x, dt, A, B, C, h0], dtype, tolerance=10)


def mlstm_definition(q, k, v, i, f):
    """One step after the other, with the logarithm of the scale of the states apart."""
    c, n, m = q.new_zeros(*q.shape[:2], q.shape[3], q.shape[3]), q.new_zeros(*q.shape[:2], q.shape[3], 1), None
    outputs = []
    for t in range(q.shape[2]):
        q_t, k_t, v_t, i_t, f_t = (x[:, :, t : t + 1] for x in (q, k, v, i, f))
        decayed = F.logsigmoid(f_t) + (i_t if m is None else m)
        m_next = i_t if m is None else torch.maximum(decayed, i_t)
        keep, take = (decayed - m_next).exp(), (i_t - m_next).exp()
        k_t = k_t.mT * take / math.sqrt(q.shape[3])
        c, n, m = c * keep + k_t * v_t, n * keep + k_t, m_next
        floor = (-m).clamp(max=80).exp()
        outputs.append(q_t @ c / (torch.maximum((q_t @ n).abs(), floor) + 1e-6))
    return torch.cat(outputs, 2)


@given(i=tensors(GATES, 1, 1, TIME, 1), f=tensors(GATES, 1, 1, TIME, 1), seed=st.integers(0, 100))
@few
def test_mlstm(i, f, seed):
    """Both for all tokens at once and for one after the other."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.rand(3, 1, 1, TIME, 2, generator=generator) + 0.5

    def steps(*inputs):
        state = [inputs[0].new_zeros(1, 1, *shape) for shape in ((2, 2), (2, 1), (1, 1))]
        outputs = []
        for parts in zip(*(x.split(1, 2) for x in inputs)):
            output, state = mlstm_step(*state, *parts)
            outputs.append(output)
        return torch.cat(outputs, 2)

    for way in (parallel_mlstm, steps):
        assert_agree(way, mlstm_definition, [q, k, v, i, f], tolerance=20 + rounding(i))


def slstm_definition(x, state, recurrent):
    """One step after the other, from an empty state. (T, B, 4 * D) for a single head of width D."""
    h, c, n, m = state
    states = [state]
    for t, x_t in enumerate(x):
        i, f, z, o = (x_t + h @ recurrent[0].mT).chunk(4, 1)
        decayed = F.logsigmoid(f) + m
        m_next = torch.maximum(i, decayed) if t else i
        keep, take = ((decayed - m_next).exp() if t else torch.zeros_like(f)), (i - m_next).exp()
        c, n, m = keep * c + take * z.tanh(), keep * n + take, m_next
        h = o.sigmoid() * c / n
        states.append(torch.stack([h, c, n, m]))
    return torch.stack(states, 1)


@given(x=tensors(GATES, TIME, 1, 4 * CHANNELS), recurrent=tensors(NUMBERS, 1, 4 * CHANNELS, CHANNELS))
@few
def test_slstm(x, recurrent):
    """h, which is all that the model reads of the states."""
    state = torch.zeros(4, 1, CHANNELS)
    assert_agree(
        lambda x, recurrent: slstm(x, state.to(x.dtype), recurrent)[0],
        lambda x, recurrent: slstm_definition(x, state.double(), recurrent)[0],
        [x, recurrent],
        tolerance=20,
    )


@pytest.mark.parametrize("dropout_p", [0.0, 1e-9])
@given(scores=tensors(GATES, TIME, TIME), seed=st.integers(0, 100))
@few
def test_attention(dropout_p, scores, seed):
    """Scores up to the largest whose products with keys of ones do not overflow."""
    scores = scores.clamp(-1e30, 1e30)
    v = torch.randn(1, 1, TIME, TIME, generator=torch.Generator().manual_seed(seed))
    k = torch.eye(TIME)[None, None]

    def definition(q, v):
        allowed = torch.ones(TIME, TIME, dtype=torch.bool).tril()
        return (q / math.sqrt(TIME)).masked_fill(~allowed, -math.inf).softmax(3) @ v

    assert_agree(
        lambda q, v: causal_attention(q, k.to(q.dtype), v, dropout_p), definition, [scores[None, None], v],
        tolerance=5 + rounding(scores),
    )  # fmt: skip


@given(x=tensors(GATES, TIME, CHANNELS))
@few
def test_dropout(x):
    """Every element is dropped or scaled, and no gradient but that of a dropped one, or of ReLU, is lost."""
    x = x.clamp(-1e38, 1e38).requires_grad_()
    for function, before in ((dropout.dropout, x), (dropout.relu_dropout, x.relu())):
        y = function(x, 0.5, True)
        kept = y != 0
        torch.testing.assert_close(y[kept], 2 * before[kept], rtol=1e-6, atol=0)
        expected = torch.where(kept, torch.full_like(x, 2.0), torch.zeros_like(x))
        gradient = torch.autograd.grad(y.sum(), x)[0]
        assert torch.equal(gradient[x != 0], expected[x != 0])
