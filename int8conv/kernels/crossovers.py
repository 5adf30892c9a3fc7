"""Where one way to multiply gives way to another on a CPU; every number once. Imports nothing: the footprint reads it too.

Measured with ``benchmarks/cpu.py`` on x86 with and without VNNI. A GPU's crossovers are in ``gpu/configs.json``, by generation.
"""

from __future__ import annotations

from typing import Final

COMPILED_TOKENS: Final = 4
"""Up to here code compiled by numba multiplies: it reads the weight at memory's speed. Beyond, arithmetic counts and not memory, and
int8 products are faster."""
W8A16_TOKENS: Final = 16
"""Up to here ``w8a16`` where no mode is asked for: reading the weight takes longer than multiplying in either mode, and it is the more
exact one."""
TOKENS_AT_ONCE: Final = 128
"""What a mixed linear multiplies in one go: integers, digits and products are several times what comes out, and stay in the
processor's cache so."""
GATHERED_CHANNELS: Final = 8
"""Below one channel in so many, gathering a fallback's columns costs less than three int8 products of the whole weight."""
