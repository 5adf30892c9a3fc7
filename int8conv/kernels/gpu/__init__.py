"""The kernels for NVIDIA GPUs, in Triton; one module a kernel.

Each module opens with its formula and layout and holds the ``@triton.jit`` functions, the launcher's checks and the public
function. ``reference`` has a PyTorch function of the same signature for every public function. ``linear`` joins them to
the mixed linear; ``configs.json`` is the table that launch configurations come from.

Importing this package imports triton; importing ``int8conv.kernels`` does not. Set ``TRITON_INTERPRET=1`` before the
first import of triton to run the kernels on CPU tensors.
"""
