"""Compiled kernels: any shape, dtype and number of threads, and where they cannot be had."""

import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from test_ops import TOLERANCE, scan_definition, scan_inputs

from rule_extrapolation.models.minimal_rnn import g
from rule_extrapolation.ops import gated_recurrence, linear_recurrence, selective_scan


def recurrence_inputs(batch, time, channels, dtype=torch.float32):
    torch.manual_seed(0)
    a, b = torch.rand(batch, time, channels, dtype=dtype), torch.randn(batch, time, channels, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (a, b, torch.randn(batch, channels, dtype=dtype))]


def gated_inputs(gates, batch, time, channels, dtype=torch.float32):
    torch.manual_seed(0)
    x = 3 * torch.randn(batch, time, (gates + 1) * channels, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (x, torch.randn(batch, channels, dtype=dtype))]


def gated_in_torch(x, h0, gates, positive):
    *logits, candidate = x.chunk(gates + 1, 2)
    keep = -logits[0] if gates == 1 else F.logsigmoid(logits[0]) - F.logsigmoid(logits[1])
    candidate = g(candidate) if positive else candidate
    return linear_recurrence.sequential(keep.sigmoid(), (-keep).sigmoid() * candidate, h0)


def assert_same(actual, expected, inputs, dtype):
    """Values and gradients."""
    weight = torch.randn_like(expected)
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    gradients = zip(
        torch.autograd.grad((actual * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs)
    )
    for gradient, reference in gradients:
        torch.testing.assert_close(gradient, reference, rtol=10 * TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


SHAPES = [(1, 1, 1), (3, 5, 7), (2, 100, 65), (1, 37, 130), (0, 4, 3), (2, 4, 0)]


@pytest.mark.parametrize("shape", SHAPES)
class TestShapes:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_linear_recurrence(self, shape, dtype):
        inputs = recurrence_inputs(*shape, dtype)
        assert_same(linear_recurrence.auto(*inputs), linear_recurrence.sequential(*inputs), inputs, dtype)

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("positive", [True, False])
    @pytest.mark.parametrize(("gates", "fused"), [(1, gated_recurrence.mingru), (2, gated_recurrence.minlstm)])
    def test_gated_recurrence(self, shape, dtype, positive, gates, fused):
        inputs = gated_inputs(gates, *shape, dtype)
        assert_same(fused(*inputs, positive), gated_in_torch(*inputs, gates, positive), inputs, dtype)


@pytest.mark.parametrize("channels", [3, 130])
def test_selective_scan_in_several_stretches_and_blocks(channels):
    inputs = scan_inputs(2, 50, channels, 5, torch.float64)
    y, h = selective_scan.selective_scan(*inputs)
    expected = scan_definition(*inputs)
    torch.testing.assert_close((y, h), expected)
    gradients = torch.autograd.grad(y.sum() + h.square().sum(), inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected[0].sum() + expected[1].square().sum(), inputs))


class TestLinearRecurrence:
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


OPS = torch.ops.rule_extrapolation
CALLS = {
    "linear_recurrence": lambda: recurrence_inputs(2, 5, 3),
    "linear_recurrence_backward": lambda: [t.detach() for t in (*recurrence_inputs(2, 5, 3), torch.ones(2, 5, 3))],
    "gated_recurrence": lambda: [*gated_inputs(2, 2, 5, 3), 2, True],
    "selective_scan": lambda: [*scan_inputs(2, 18, 3, 4, torch.float32), True],
    "selective_scan_without_gradient": lambda: [*(t.detach() for t in scan_inputs(2, 18, 3, 4, torch.float32)), False],
}


@pytest.mark.parametrize("name", CALLS)
def test_operators_keep_torchs_rules(name):
    """Schema, fake tensors, autograd, and ahead-of-time tracing."""
    torch.library.opcheck(getattr(OPS, name.removesuffix("_without_gradient")).default, CALLS[name]())


@pytest.mark.parametrize("fused", [gated_recurrence.mingru, gated_recurrence.minlstm])
@pytest.mark.parametrize("positive", [True, False])
def test_gradcheck_of_gates(fused, positive):
    inputs = gated_inputs(1 if fused is gated_recurrence.mingru else 2, 2, 4, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda x, h0: fused(x, h0, positive), inputs)


def inputs_of_every_kernel():
    """Of a size that takes several threads."""
    return recurrence_inputs(5, 300, 65), gated_inputs(2, 5, 300, 65), scan_inputs(5, 33, 150, 7, torch.float32)


KERNELS = (
    linear_recurrence.auto,
    lambda x, h0: gated_recurrence.minlstm(x, h0, True),
    lambda *arguments: selective_scan.selective_scan(*arguments)[0],
)


def everything(inputs):
    """Values and gradients of every kernel."""
    results = []
    for function, arguments in zip(KERNELS, inputs):
        value = function(*arguments)
        results += [value.detach(), *torch.autograd.grad(value.square().sum(), arguments)]
    return results


def equal(results, others):
    return all(torch.equal(result, other) for result, other in zip(results, others, strict=True))


class Computed(torch.utils.data.Dataset):
    """Whether what a worker computes is what is expected."""

    def __init__(self, inputs, expected, h):
        self.inputs, self.expected, self.h = inputs, expected, h

    def __len__(self):
        return 4

    def __getitem__(self, i):
        with torch.no_grad():
            torch.set_num_threads(2)  # in a forked process torch's own operations would hang
            h = linear_recurrence.auto(*self.inputs[0])
            torch.set_num_threads(1)
        return torch.equal(h, self.h) and equal(self.expected, everything(self.inputs))


class TestThreads:
    def test_results_do_not_depend_on_their_number(self):
        inputs, threads, results = inputs_of_every_kernel(), torch.get_num_threads(), []
        try:
            for number in (1, 2, 3, 3):
                torch.set_num_threads(number)
                results.append(everything(inputs))
        finally:
            torch.set_num_threads(threads)
        assert all(equal(results[0], other) for other in results[1:])

    def test_kernels_may_be_called_from_several_threads_at_once(self):
        inputs = inputs_of_every_kernel()
        expected = everything(inputs)
        with ThreadPoolExecutor(4) as pool:
            assert all(equal(expected, results) for results in pool.map(everything, [inputs] * 8))

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    def test_forked_workers_of_a_data_loader(self):
        inputs = inputs_of_every_kernel()
        data = Computed(inputs, everything(inputs), linear_recurrence.auto(*inputs[0]).detach())
        loader = torch.utils.data.DataLoader(data, num_workers=2, multiprocessing_context="fork", timeout=60)
        assert all(loader)
        assert equal(data.expected, everything(inputs))


def run(script, **environment):
    return subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    ).stdout


TRAIN = """
import sys, torch
from rule_extrapolation.models.mamba import MambaLM
from rule_extrapolation.models.minlstm import MinLSTM
torch.manual_seed(0)
tokens = torch.randint(0, 7, (3, 20))
for model in (MinLSTM(7), MambaLM(7, n_layers=1)):
    logits = model(tokens)
    logits.square().sum().backward()
    print(*(f"{value:.4f}" for value in (logits.std(), *(p.grad.norm() for p in model.parameters()))))
"""


class TestNumba:
    def test_without_it_the_torch_code_gives_the_same(self):
        compiled = run(TRAIN)
        assert run("import sys; sys.modules['numba'] = None\n" + TRAIN) == compiled

    def test_is_imported_only_to_compute(self):
        modules = ("cli.train", "models.mamba", "models.mingru")
        script = "import sys; " + "; ".join(f"import rule_extrapolation.{module}" for module in modules)
        assert run(f"{script}; print('numba' in sys.modules)") == "False\n"

    @pytest.mark.slow  # compiles everything once more
    def test_works_where_nothing_can_be_written(self):
        script = "import numba.core.caching as c; c.CacheImpl._locator_classes = []\n"
        assert run(script + TRAIN) == run(TRAIN)

    @pytest.mark.slow
    def test_is_compiled_anew_where_what_it_calls_has_changed(self, tmp_path):
        shutil.copytree(ROOT / "rule_extrapolation", tmp_path / "rule_extrapolation")
        script = """
import torch
from rule_extrapolation.ops import strings, words
arguments = (3, 4), torch.full((20000,), 8), torch.full((20000,), 20), 20, torch.arange(20000)
compiled = words.shuffled(*arguments)
strings.WORTH_COMPILING = 10**12
print(torch.equal(compiled, words.shuffled(*arguments)))
"""
        environment = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        assert run(script, **environment) == "True\n"
        called = tmp_path / "rule_extrapolation" / "ops" / "words.py"
        called.write_text(called.read_text().replace("0x9E3779B97F4A7C15", "0x9E3779B97F4A7C17"))
        assert run(script, **environment) == "True\n"


def test_triton():
    """In Triton's interpreter."""
    pytest.importorskip("triton")
    script = """
import torch
from rule_extrapolation.ops import linear_recurrence, linear_recurrence_triton as kernels
for shape in ((2, 5, 3), (1, 1, 1), (3, 7, 33), (2, 0, 3), (0, 2, 3)):
    for dtype in (torch.float32, torch.float64):
        a, b, dh = torch.rand(3, *shape, dtype=dtype)
        h0 = torch.rand(shape[0], shape[2], dtype=dtype)
        h = linear_recurrence.forward(a, b, h0)
        torch.testing.assert_close(kernels.forward(a.mT.contiguous().mT, b, h0), h)
        torch.testing.assert_close(kernels.backward(a, h, h0, dh), linear_recurrence.backward(a, h, h0, dh))
print("same")
"""
    assert run(script, TRITON_INTERPRET="1") == "same\n"
