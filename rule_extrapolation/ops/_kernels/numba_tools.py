"""Building blocks of the compiled kernels. Only ``cpu_numba.py`` files import this, since importing numba is slow.

A kernel is a C function with one argument, a pointer to a *job*: int64 numbers that hold a counter (0 at the start),
the number of tasks, then sizes, then addresses of arrays. Several threads call the kernel with the same job; each
claims tasks from the counter until none are left. No two tasks write to the same place, so that results depend neither
on the number of threads nor on their order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cache, partial, update_wrapper
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic, overload, register_jitable

# LLVM vectorises a loop only if it can check that the arrays do not overlap; its default limit is 8 comparisons.
llvmlite.binding.set_option("rule_extrapolation", "-runtime-memory-check-threshold=200")

# x / 0 is inf, as in torch. Raising an exception takes a branch, which would prevent vectorisation.
OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "nsz"}}
"""Multiplications may be fused with additions; nan and inf are respected. Products are computed in the order that is
written: in another, an intermediate result may overflow."""
SUM_OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}}
"""For functions that sum over an array: terms may be reordered, without which the loop would not be vectorised."""

JOB = types.CPointer(types.int64)

LOG2_E = np.float32(math.log2(math.e))
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
ROUND = np.float32(1.5 * 2**23)
"""Adding it to a float32 below 2^22 rounds that to an integer, which is in the lowest bits of the sum."""
EXP_ZERO = np.float32(-87.33)
"""Below this, exp(x) is less than the smallest normal float32."""


def kernel(function: Callable[[Any], None]) -> Any:
    """Compile a C function of a job. It is cached beside its source or in NUMBA_CACHE_DIR if that can be written to."""
    function = keyed_by_sources(function)
    compile = partial(cfunc, types.void(JOB), **OPTIONS)
    try:
        return compile(cache=True)(function)
    except RuntimeError:  # nowhere to write
        return compile()(function)


def source_files() -> list[Path]:
    """All files that compiled kernels depend on: the modules of ``ops`` and the tokens."""
    ops = Path(__file__).parents[1]
    return [*sorted(ops.rglob("*.py")), ops.parent / "core" / "tokens.py"]


@cache
def sources() -> str:
    """A hash of the source files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in source_files())).hexdigest()


def keyed_by_sources(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """The function with the hash of the source files in its closure.

    Numba recompiles a cached function if its own file or a variable of its closure has changed, but not if a function
    that it calls in another file has.
    """
    code = function.__code__
    code = code.replace(co_freevars=(*code.co_freevars, "sources"))
    closure = (*(function.__closure__ or ()), CellType(sources()))
    keyed = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    return update_wrapper(keyed, function)


@intrinsic
def claim(typing_context, job):
    """The number of the next task, which is not less than the number of tasks if none are left."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("add", arguments[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(job), codegen


@intrinsic(prefer_literal=True)
def fields(typing_context, job, count):
    """The first ``count`` numbers of a job without the counter, as a tuple."""

    def codegen(context, builder, signature, arguments):
        integer = ir.IntType(64)
        places = [builder.gep(arguments[0], [integer(k)], source_etype=integer) for k in range(1, count.literal_value)]
        values = [builder.load(place, typ=integer) for place in places]
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(types.int64, count.literal_value - 1)(job, count), codegen


@intrinsic
def pointer(typing_context, address, first, dtype):
    """A pointer to the number at index ``first`` of the array at an address."""

    def codegen(context, builder, signature, arguments):
        start = builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
        return builder.gep(start, [arguments[1]], source_etype=context.get_value_type(dtype.dtype))

    return types.CPointer(dtype.dtype)(address, types.int64, dtype), codegen


@register_jitable
def row(address, first, length, dtype):
    """Numbers [first, first + length) of the array at an address.

    LLVM treats each row as an array of its own, and vectorises loops that it would not vectorise over one
    two-dimensional array.
    """
    return carray(pointer(address, first, dtype), length)


def exp(x):
    """exp for kernels, which LLVM can vectorise in float32. The error is at most 2 units in the last place; results
    below 2^-126 are 0."""
    return math.exp(x)


@overload(exp)
def overload_exp(x):
    return (lambda x: exp_float32(x)) if x == types.float32 else (lambda x: math.exp(x))


@njit(error_model="numpy", fastmath={"contract"})  # without reassoc, which would cancel the rounding steps
def exp_float32(x):
    """2^n exp(r) for x = n log 2 + r, with the polynomial for exp(r) of Moshier's Cephes library."""
    shifted = min(x * LOG2_E, np.float32(127)) + ROUND
    n = shifted - ROUND
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    exponent = np.int32((np.float32(shifted).view(np.int32) + np.int32(127)) << np.int32(23))
    power = np.int32(exponent).view(np.float32)
    return np.float32(0) if x < EXP_ZERO else p * power
