"""Compiled kernels in general: torch's rules for operators, threads, forks, the cache, and running without numba."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT
from op_testing import gated_inputs, recurrence_inputs, run, scan_inputs

from rule_extrapolation.ops import gated_recurrence, linear_recurrence
from rule_extrapolation.ops.selective_scan import selective_scan

OPS = torch.ops.rule_extrapolation
CALLS = {
    "linear_recurrence": lambda: recurrence_inputs(2, 5, 3),
    "linear_recurrence_backward": lambda: [t.detach() for t in (*recurrence_inputs(2, 5, 3), torch.ones(2, 5, 3))],
    "gated_recurrence": lambda: [*gated_inputs(2, 2, 5, 3), 2, True, True],
    "selective_scan": lambda: [*scan_inputs(2, 18, 3, 4, torch.float32), True, True],
    "selective_scan_without_gradient": lambda: [
        *(t.detach() for t in scan_inputs(2, 18, 3, 4, torch.float32)),
        False,
        False,
    ],
}


@pytest.mark.parametrize("name", CALLS)
def test_operators_keep_torchs_rules(name):
    """Schema, fake tensors, autograd, and ahead-of-time tracing."""
    torch.library.opcheck(getattr(OPS, name.removesuffix("_without_gradient")).default, CALLS[name]())


def inputs_of_every_kernel():
    """Arguments large enough for several threads."""
    return recurrence_inputs(5, 300, 65), gated_inputs(2, 5, 300, 65), scan_inputs(5, 33, 150, 7, torch.float32)


KERNELS = (
    linear_recurrence.auto,
    lambda x, h0: gated_recurrence.minlstm(x, h0, True),
    lambda *arguments: selective_scan(*arguments)[0],
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
    """Each item is whether a worker computes the expected values."""

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


TRAIN = """
import sys, torch
from rule_extrapolation.models.mamba import MambaLM
from rule_extrapolation.models.minlstm import MinLSTM
torch.manual_seed(0)
tokens = torch.randint(0, 7, (3, 20))
for model in (MinLSTM(7), MambaLM(7, n_layers=1)):
    logits = model(tokens)
    logits.square().sum().backward()
    print(*(f"{value:.5g}" for value in (logits.std(), *(p.grad.norm() for p in model.parameters()))))
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

    def test_the_cache_depends_on_every_file_that_kernels_call(self):
        numba_tools = pytest.importorskip("rule_extrapolation.ops._kernels.numba_tools")
        files = {str(file.relative_to(ROOT / "rule_extrapolation")) for file in numba_tools.source_files()}
        assert {"core/tokens.py", "ops/_kernels/numba_tools.py"} < files
        assert {f"ops/{name}/cpu_numba.py" for name in ("dropout", "linear_recurrence", "strings", "words")} < files
        assert {f"ops/{name}/reference.py" for name in ("gated_recurrence", "selective_scan", "words")} < files

    @pytest.mark.slow
    def test_is_compiled_again_after_a_change_in_what_it_calls(self, tmp_path):
        shutil.copytree(ROOT / "rule_extrapolation", tmp_path / "rule_extrapolation")
        script = """
import torch
from rule_extrapolation.ops import words
from rule_extrapolation.ops._kernels import launcher
arguments = (3, 4), torch.full((20000,), 8), torch.full((20000,), 20), 20, torch.arange(20000)
compiled = words.shuffled(*arguments)
launcher.WORTH_COMPILING = 10**12
print(torch.equal(compiled, words.shuffled(*arguments)))
"""
        cache = str(tmp_path / "cache")
        assert run(script, tmp_path, NUMBA_CACHE_DIR=cache) == "True\n"
        called = tmp_path / "rule_extrapolation" / "ops" / "words" / "reference.py"
        assert "0x9E3779B97F4A7C15" in called.read_text()
        called.write_text(called.read_text().replace("0x9E3779B97F4A7C15", "0x9E3779B97F4A7C17"))
        assert run(script, tmp_path, NUMBA_CACHE_DIR=cache) == "True\n"
