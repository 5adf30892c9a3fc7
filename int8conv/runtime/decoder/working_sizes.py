"""How much the decoder processes at once, which bounds the memory of a pass. Needs no torch: the footprint uses the same numbers.

Tokens per quantized linear on a CPU are bounded by ``kernels.crossovers.TOKENS_AT_ONCE``.
"""

from __future__ import annotations

from typing import Final

PREFILL_TOKENS: Final = {"cpu": 256, "cuda": 2048}
"""Tokens of a prompt that pass through the decoder at once, by device: more tokens need more memory and are hardly faster."""
SCORES_AT_ONCE: Final = 1 << 22
"""Largest number of attention scores masked or held at once on a CPU; calls with more are split by tokens."""
SCORES_ON_GPU: Final = 1 << 26
"""Largest number of elements of a mask or of float32 scores at once on a GPU: 256 MiB."""
WIDENED_AT_ONCE: Final = 1 << 18
"""Elements of a narrow cache's keys (and as many of its values) to widen at once on a CPU; at least one head."""
FOLDED_AT_ONCE: Final = 1 << 18
"""Elements of a folded int8 weight (latent attention) to widen at once; at least one head's."""
FOLDED_ON_GPU: Final = 1 << 25
"""The same on a GPU, where it is time per launch that counts: all of DeepSeek-V3's."""
WIDENED_ON_GPU: Final = 1 << 25
"""The same for an int8 cache on a GPU, for a prompt: 64 MiB each of keys and values."""
