"""Causal attention, with dropout and without."""

import pytest
import torch
import torch.nn.functional as F

from rule_extrapolation.ops.attention import causal_attention


@pytest.mark.parametrize(("queries", "positions"), [(1, 1), (6, 6), (1, 6), (4, 6)])
def test_attention_with_dropout_is_attention_but_for_what_it_drops(queries, positions):
    """At a rate that drops nothing here, and as the mean over many draws of weights."""
    torch.manual_seed(0)
    q = torch.randn(2, 3, queries, 8, dtype=torch.float64, requires_grad=True)
    k, v = torch.randn(2, 2, 3, positions, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(queries, positions, dtype=torch.bool).tril(positions - queries)
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    gradients = torch.autograd.grad(expected.square().sum(), (q,))
    for p in (0.0, 1e-9):
        attended = causal_attention(q, k, v, p)
        torch.testing.assert_close(attended, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(torch.autograd.grad(attended.square().sum(), (q,)), gradients, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        mean = torch.stack([causal_attention(q, k, v, 0.3) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, expected, atol=0.1, rtol=0)
