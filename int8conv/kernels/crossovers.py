"""Thresholds between implementations on a CPU, each defined once. Imports nothing, as the footprint reads it too.

Measured with ``benchmarks/cpu.py`` on x86 with and without VNNI. Those of GPUs are in ``gpu/configs.json``, by generation.
"""

from __future__ import annotations

from typing import Final

COMPILED_TOKENS: Final = 4
"""Largest number of tokens for code compiled by numba, which reads the weight at the speed of memory. Beyond that, arithmetic
is the bottleneck and int8 products are faster, if the processor has them."""
COMPILED_TOKENS_WITHOUT_VNNI: Final = 16
"""The same if it has none: widening the weight takes longer than multiplying as many tokens as ``w8a16`` is the default for."""
W8A16_TOKENS: Final = 16
"""Largest number of tokens for which ``w8a16`` is the default: reading the weight takes longer than multiplying in either mode,
and ``w8a16`` is more exact."""
TOKENS_AT_ONCE: Final = 128
"""Number of tokens that a mixed linear multiplies at once: integers, digits and products take several times the size of the
result, and should stay in the processor's cache."""
GATHERED_CHANNELS: Final = 8
"""If fewer than one in this many channels are in the fallback, gathering their columns costs less than three int8 products of
the whole weight."""
