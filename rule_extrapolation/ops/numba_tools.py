"""What the compiled kernels share. Imported only by them, since importing numba takes a while.

A kernel is a C function of one pointer, to a *job*: int64 numbers that hold a counter, the number of tasks, then sizes
and addresses of arrays. Any number of threads may call it at once; each claims tasks from the counter until there are
none left. A task writes what no other task writes, so that results depend neither on the threads nor on their order.
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

# To vectorise a loop, LLVM checks that its arrays do not overlap; by default, only if 8 comparisons do.
llvmlite.binding.set_option("rule_extrapolation", "-runtime-memory-check-threshold=200")

# x / 0 is inf as in torch, not an exception: branches would keep loops from being vectorised.
OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}}
"""Sums may be reordered and multiplications fused; nan and inf count."""

JOB = types.CPointer(types.int64)

LOG2_E = np.float32(math.log2(math.e))
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
ROUND = np.float32(1.5 * 2**23)
"""Added to a smaller float32, it leaves an integer in the lowest bits."""
EXP_ZERO = np.float32(-87.33)
"""Below, exp is less than the smallest normal float32."""


def kernel(function: Callable[[Any], None]) -> Any:
    """A C function of a job, kept on disk beside its source or in NUMBA_CACHE_DIR, if either can be written to."""
    function = keyed_by_sources(function)
    compile = partial(cfunc, types.void(JOB), **OPTIONS)
    try:
        return compile(cache=True)(function)
    except RuntimeError:  # nowhere to write
        return compile()(function)


@cache
def sources() -> str:
    """A hash of all that kernels are made of: the modules of this package, and the tokens."""
    package = Path(__file__).parent
    files = [*sorted(package.glob("*.py")), package.parent / "core" / "tokens.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def keyed_by_sources(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """numba compiles a function anew where its own file or a variable of its closure has changed, but not for what it
    calls in other files: this makes their hash a variable of the closure."""
    code = function.__code__
    code = code.replace(co_freevars=(*code.co_freevars, "sources"))
    closure = (*(function.__closure__ or ()), CellType(sources()))
    keyed = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    return update_wrapper(keyed, function)


@intrinsic
def claim(typing_context, job):
    """The next task. Its number may be beyond the last one's."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("add", arguments[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(job), codegen


@intrinsic(prefer_literal=True)
def fields(typing_context, job, count):
    """The first numbers of a job, the counter left out."""

    def codegen(context, builder, signature, arguments):
        integer = ir.IntType(64)
        places = [builder.gep(arguments[0], [integer(k)], source_etype=integer) for k in range(1, count.literal_value)]
        values = [builder.load(place, typ=integer) for place in places]
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(types.int64, count.literal_value - 1)(job, count), codegen


@intrinsic
def pointer(typing_context, address, first, dtype):
    def codegen(context, builder, signature, arguments):
        start = builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
        return builder.gep(start, [arguments[1]], source_etype=context.get_value_type(dtype.dtype))

    return types.CPointer(dtype.dtype)(address, types.int64, dtype), codegen


@register_jitable
def row(address, first, length, dtype):
    """Numbers [first, first + length) of the array at an address. LLVM takes rows for arrays of their own, which lets
    it vectorise loops over them where it would not loops over one array of two dimensions."""
    return carray(pointer(address, first, dtype), length)


def exp(x):
    """In a kernel: exp that LLVM can vectorise in float32, within 2 units in the last place; below 2^-126 it is 0."""
    return math.exp(x)


@overload(exp)
def overload_exp(x):
    return (lambda x: exp_float32(x)) if x == types.float32 else (lambda x: math.exp(x))


@njit(error_model="numpy", fastmath={"contract"})  # reordered, the steps that round would cancel
def exp_float32(x):
    """2^n exp(r) for x = n log 2 + r, with the polynomial of Moshier's Cephes for exp(r)."""
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
