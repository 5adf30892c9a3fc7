"""Triton kernels for NVIDIA GPUs, one module per kernel.

Each module begins with its formula and layout and contains the ``@triton.jit`` functions, the launcher's checks and the public
function. ``reference`` has a PyTorch function with the same signature for every public function. ``linear`` combines them into
the mixed linear; ``configs.json`` is the table of launch configurations.

Importing this package imports triton; importing ``int8conv.kernels`` does not. Set ``TRITON_INTERPRET=1`` before the
first import of triton to run the kernels on CPU tensors.
"""
