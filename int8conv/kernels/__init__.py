"""Mixed-precision linears: one interface, several implementations.

``mixed_linear`` multiplies with an int8 weight that has row scales and 16-bit outlier columns; ``dense_linear`` with a
plain 16- or 32-bit one. ``reference`` is the formula; ``cpu`` is the fast path on a CPU. Knows tensors, no files.
"""

from .cpu import jit
from .dense import dense_linear
from .dispatch import (
    IMPLEMENTATIONS,
    MODES,
    Mode,
    dequantized_rows,
    mixed_linear,
)
from .weight import FallbackCounter, MixedWeight

__all__ = [
    "IMPLEMENTATIONS",
    "MODES",
    "FallbackCounter",
    "MixedWeight",
    "Mode",
    "dense_linear",
    "dequantized_rows",
    "jit",
    "mixed_linear",
]
