"""Dropout on a CPU keeps the promises of F.dropout, with random numbers of its own."""

import numpy as np
import pytest
import torch

from rule_extrapolation.ops.dropout import dropout, relu_dropout

LEVELS = 2**32


@pytest.mark.parametrize("p", [0.0001, 0.1, 0.5, 0.9])
def test_rate_and_expectation(p):
    torch.manual_seed(0)
    n = 2_000_003
    dropped = dropout(torch.full((n,), 3.0, dtype=torch.float64), p, training=True)
    rate = round(p * LEVELS) / LEVELS
    torch.testing.assert_close(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 3 / (1 - rate)))
    deviation = (p * (1 - p) / n) ** 0.5
    assert abs((dropped == 0).double().mean() - rate) < 4 * deviation


def test_draws_are_independent_of_their_neighbours():
    """Draws are hashes of places: each pair of them is as often both dropped as any."""
    torch.manual_seed(0)
    lost = (dropout(torch.ones(1_000_000), 0.1, training=True) == 0).double()
    for distance in (1, 2, 3, 4, 5):
        assert abs((lost[distance:] * lost[:-distance]).mean() - 0.01) < 5e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradient_is_that_of_what_was_kept(dtype):
    torch.manual_seed(0)
    x = torch.randn(7, 5, 3, dtype=dtype).transpose(0, 1).requires_grad_()
    dropped = dropout(x, 0.5, training=True)
    dropped.backward(torch.ones_like(dropped))
    assert dropped.dtype == dtype
    torch.testing.assert_close(x.grad, (dropped != 0).to(dtype) * 2)


def test_goes_on_where_the_generator_was():
    x = torch.ones(101)
    torch.manual_seed(0)
    dropout(x, 0.5, training=True)
    state = torch.get_rng_state()
    second = dropout(x, 0.5, training=True)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.5, training=True), second)
    assert not torch.equal(dropout(x, 0.5, training=True), second)


def hashed(places: int, low: int, high: int) -> np.ndarray:
    """Two rounds of lowbias32 in Python's own numbers."""
    hashes = []
    for place in range(places):
        x = (place * 0x9E3779B9 + low) % LEVELS
        x = (x ^ x >> 16) * 0x7FEB352D % LEVELS
        x = ((x ^ x >> 15) ^ high) * 0x846CA68B % LEVELS
        hashes.append(x ^ x >> 16)
    return np.array(hashes)


@pytest.mark.parametrize("n", [0, 1, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_keep_what_the_hash_of_a_place_says(n, dtype):
    pytest.importorskip("numba")
    x = torch.randn(n, dtype=dtype, requires_grad=True)
    for function, source in ((dropout, x), (relu_dropout, x.relu())):
        torch.manual_seed(1)
        low, high = torch.randint(2**32, (2,)).tolist()
        kept = torch.from_numpy(hashed(n, low, high) >= round(0.3 * LEVELS))
        expected = source * kept / (1 - round(0.3 * LEVELS) / LEVELS)
        torch.manual_seed(1)
        dropped = function(x, 0.3, training=True)
        torch.testing.assert_close(dropped, expected)
        d = torch.randn(n, dtype=dtype)
        got, wanted = (torch.autograd.grad(y, x, d) for y in (dropped, expected))
        torch.testing.assert_close(got, wanted)


def test_nan_stays_nan_unless_it_is_dropped():
    x = torch.full((1000,), torch.nan, requires_grad=True)
    for function in (dropout, relu_dropout):
        torch.manual_seed(0)
        dropped = function(x, 0.1, training=True)
        assert 850 < dropped.isnan().sum() < 950
        assert torch.autograd.grad(dropped, x, torch.ones(1000))[0].isnan().sum() == 0


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_dropped_or_drawn(p, training):
    state = torch.get_rng_state()
    x = torch.randn(5, generator=torch.Generator())
    assert torch.equal(dropout(x, p, training), x)
    assert torch.equal(relu_dropout(x, p, training), x.relu())
    assert torch.equal(torch.get_rng_state(), state)
