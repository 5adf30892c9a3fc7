"""How much the decoder takes on at once: what bounds the memory of a pass. Needs no torch: the footprint counts with the same numbers.

Tokens of a quantized linear on a CPU are bounded by ``kernels.crossovers.TOKENS_AT_ONCE``.
"""

from __future__ import annotations

from typing import Final

PREFILL_TOKENS: Final = {"cpu": 256, "cuda": 2048}
"""Tokens of a prompt that pass through the decoder at once, by device: more make activations larger, and little faster."""
SCORES_AT_ONCE: Final = 1 << 22
"""Attention scores that are masked, or held, at once on a CPU; tokens of a call pass in parts where there are more."""
SCORES_ON_GPU: Final = 1 << 26
"""Elements of a mask, or of float32 scores, that exist at once on a GPU: 256 MiB."""
WIDENED_AT_ONCE: Final = 1 << 18
"""Elements of a narrow cache's keys, and of its values, that are widened at once on a CPU; one head where that has more."""
WIDENED_ON_GPU: Final = 1 << 25
"""The same of an int8 cache on a GPU, for a prompt: 64 MiB of keys, and of values."""
