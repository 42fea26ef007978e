"""Random arguments of the operations, and what their tests share."""

import os
import subprocess
import sys

import torch

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

SHAPES = [(1, 1, 1), (3, 5, 7), (2, 100, 65), (1, 37, 130), (0, 4, 3), (2, 4, 0)]
"""(batch, time, channels), empty ones included."""


def recurrence_inputs(batch, time, channels, dtype=torch.float32):
    torch.manual_seed(0)
    a, b = torch.rand(batch, time, channels, dtype=dtype), torch.randn(batch, time, channels, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (a, b, torch.randn(batch, channels, dtype=dtype))]


def gated_inputs(gates, batch, time, channels, dtype=torch.float32):
    torch.manual_seed(0)
    x = 3 * torch.randn(batch, time, (gates + 1) * channels, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (x, torch.randn(batch, channels, dtype=dtype))]


def scan_inputs(batch, time, channels, states, dtype, seed=0):
    """x, dt, A, B, C and h0 as Mamba makes them."""
    torch.manual_seed(seed)
    x = torch.randn(batch, time, channels, dtype=dtype)
    dt = torch.rand(batch, time, channels, dtype=dtype)
    A = -torch.rand(channels, states, dtype=dtype) * states
    B, C = torch.randn(2, batch, time, states, dtype=dtype)
    h0 = torch.randn(batch, channels, states, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (x, dt, A, B, C, h0)]


def assert_same(actual, expected, inputs, dtype):
    """Compare values and gradients."""
    weight = torch.randn_like(expected)
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    gradients = zip(
        torch.autograd.grad((actual * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs)
    )
    for gradient, reference in gradients:
        # A gradient is itself a sum over up to `time` steps.
        torch.testing.assert_close(gradient, reference, rtol=10 * TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


def run(script, folder=None, **environment):
    """What a script prints, in a Python process of its own. It imports modules of that folder first."""
    options = {"env": {**os.environ, **environment}, "cwd": folder, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-c", script], check=True, **options).stdout
