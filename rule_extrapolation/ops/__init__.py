"""Tensor operations.

An operation with several implementations is a folder:

- ``__init__.py``: the public functions, which choose the implementation
- ``reference.py``: plain torch, which defines the operation and runs where there is no kernel
- ``cpu_numba.py``: kernels for CPUs, compiled by numba when they are first used
- ``cuda_triton.py``: kernels for CUDA

An operation with one implementation is a file.
"""
