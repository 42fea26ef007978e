"""The chunked delta rule, compared with the recurrence token by token."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from rule_extrapolation.ops.delta_rule import CHUNK, delta_rule
from rule_extrapolation.ops.delta_rule.reference import delta_rule as reference


def inputs(length, decay, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(2, 3, *shape, generator=generator, dtype=dtype)

    q, k, v = draw(length, 4), normalize(draw(length, 4), dim=3), draw(length, 5)
    beta, state = 2 * draw(length).sigmoid(), draw(4, 5)
    log_decay = None if decay is None else -decay * draw(length).exp()
    return [each if each is None else each.requires_grad_() for each in (q, k, v, beta, log_decay, state)]


@pytest.mark.parametrize("decay", [None, 0.0, 1e-3, 1.0, 1e3, 1e30])
@pytest.mark.parametrize("length", [1, 2, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_values_and_gradients_are_those_of_the_recurrence(length, decay):
    arguments = inputs(length, decay)
    found, expected = delta_rule(*arguments), reference(*arguments)
    weights = [torch.randn_like(part) for part in expected]
    gradients = []
    for results in (found, expected):
        loss = sum((part * weight).sum() for part, weight in zip(results, weights))
        gradients.append(torch.autograd.grad(loss, [each for each in arguments if each is not None]))
    for ours, theirs in zip([*found, *gradients[0]], [*expected, *gradients[1]]):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("log_decay", [-torch.inf, torch.finfo(torch.float32).min, -1e-45, 0.0])
def test_any_decay_is_computed_without_nan(log_decay):
    q, k, v, beta, _, state = inputs(CHUNK + 5, None, torch.float32)
    decay = torch.full_like(beta, log_decay).detach().requires_grad_()
    output, last = delta_rule(q, k, v, beta, decay, state)
    expected, expected_last = reference(q, k, v, beta, decay, state)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, expected_last, rtol=1e-4, atol=1e-4)
    (output.sum() + last.sum()).backward()
    assert all(each.grad.isfinite().all() for each in (q, k, v, beta, state))
    if log_decay != -torch.inf:
        assert decay.grad.isfinite().all()


def test_a_householder_reflection_has_the_eigenvalue_minus_one():
    k = normalize(torch.randn(1, 1, 1, 4), dim=3)
    identity = torch.eye(4)[None, None]
    _, matrix = delta_rule(k, k, torch.zeros(1, 1, 1, 4), torch.full((1, 1, 1), 2.0), None, identity)
    assert sorted(torch.linalg.eigvalsh(matrix[0, 0]).tolist()) == pytest.approx([-1, 1, 1, 1], abs=1e-5)
