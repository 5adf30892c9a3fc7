"""What computes a layer: PyTorch, code compiled by numba, Triton kernels on a GPU."""
