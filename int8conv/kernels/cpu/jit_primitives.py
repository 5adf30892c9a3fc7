# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, call-arg"
# ruff: noqa: ARG001 - numba requires these arguments
"""What the compiled kernels are made of: conversions of bits, an exponential that is vectors.

Numba's cache checks only the modification time of the file that defines a function. After a change here, or in any ``jit_*``
module that others import, delete the cache (``__pycache__``); tests use a separate cache for each state of these files.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .jit_cache import compiled

FLOAT16, BFLOAT16 = 1, 2
NO_NORM, RMS_NORM, LAYER_NORM = range(3)
NO_ACTIVATION, SILU, RELU, GELU, GELU_TANH, RELU_SQUARED = range(6)


@intrinsic
def half(context, bits):
    """The float32 value of float16 bits, using the processor's conversion: numba has no 16-bit floats."""

    def generate(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _float_of_bits(context, bits):
    """The float32 with these bits."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@compiled()
def brain(bits):
    """The float32 value of bfloat16 bits, which are the upper half of float32 bits."""
    return _float_of_bits(np.int32(np.uint32(bits) << np.uint32(16)))


@compiled()
def exp(x):
    """e^x with a relative error of about 3e-7, for vectorized loops: no call, no branch.

    2^n e^r with |r| <= ln(2) / 2 and the series of e^r up to the seventh power. 1e-38 below -87.3, infinity above 88.7.
    """
    inside = min(max(x, np.float32(-87.3)), np.float32(88.7))
    n = np.floor(inside * np.float32(1.442695041) + np.float32(0.5))
    r = np.float32(inside - n * np.float32(0.693145752)) - n * np.float32(1.42860677e-6)
    y = np.float32(1 / 5040)
    y = y * r + np.float32(1 / 720)
    y = y * r + np.float32(1 / 120)
    y = y * r + np.float32(1 / 24)
    y = y * r + np.float32(1 / 6)
    y = y * r + np.float32(0.5)
    y = y * r + np.float32(1)
    y = y * r + np.float32(1)
    return y * _float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))
