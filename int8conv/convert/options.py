"""What decides a conversion's bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from ..errors import ArgumentError
from .selection import Patterns

Outliers = Literal["calibrated", "none"]
HALVES: Final = {"float16": "F16", "bfloat16": "BF16"}
DEFAULT_SHARD_BYTES: Final = 5_000_000_000


@dataclass(frozen=True)
class ConvertOptions:
    """What decides the output's bytes; recorded in the manifest."""

    outliers: Outliers = "calibrated"
    dtype: str = "float16"
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    keep: tuple[str, ...] = ()
    """Regular expressions: linears whose path one of them matches somewhere stay in 16 bits."""
    quantize: tuple[str, ...] = ()
    """The same, for further matrices that become int8: head, embeddings."""
    include: tuple[str, ...] = ()
    """The same, for names of tensors: only these take part, if there are any."""
    exclude: tuple[str, ...] = ()
    """The same: these are left out."""

    def __post_init__(self) -> None:
        if self.outliers not in ("calibrated", "none"):
            raise ArgumentError("outliers", expected="calibrated or none", found=self.outliers)
        if self.dtype not in HALVES:
            raise ArgumentError("dtype", expected=" or ".join(HALVES), found=self.dtype)
        if self.max_shard_bytes < 1:
            raise ArgumentError("max_shard_bytes", expected="1 or more", found=self.max_shard_bytes)
        for option in ("keep", "quantize", "include", "exclude"):
            for pattern in getattr(self, option):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ArgumentError(option, expected="a regular expression",
                                        found=f"{pattern!r}: {error}") from None  # fmt: skip

    @property
    def half(self) -> str:
        """``dtype`` as safetensors has it."""
        return HALVES[self.dtype]

    @property
    def patterns(self) -> Patterns:
        """Those that decide on precision."""
        return Patterns(self.keep, self.quantize)
