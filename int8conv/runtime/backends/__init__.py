"""Implementations of a layer: PyTorch, code compiled by numba, Triton kernels on a GPU."""
