"""The dtypes of activations and caches by name; imports nothing, as the command line and the footprint need no torch."""

from __future__ import annotations

from typing import Final

FLOAT_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes per activation."""
CACHE_BYTES: Final = FLOAT_BYTES | {"int8": 1}
"""Bytes per element of a KV cache; int8 has scales in addition."""
