"""The options that determine a conversion's bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from ..errors import ArgumentError, JsonFileError
from ..formats.int8.folder import ConvertedFolder
from ..formats.int8.names import MANIFEST_FILE
from ..formats.int8.outlier_cap import CAP_FRACTION
from .outliers.rule import DEFAULT_RULE, HEAVY_TAILS, RULES, Choosing, HeavyTails, Rule
from .outliers.selection import HEADS, Head, Patterns

Outliers = Literal["calibrated", "data-free", "none"]
OUTLIERS: Final[tuple[Outliers, ...]] = ("calibrated", "data-free", "none")
Rounding = Literal["nearest", "compensated"]
ROUNDINGS: Final[tuple[Rounding, ...]] = ("nearest", "compensated")
HALVES: Final = {"float16": "F16", "bfloat16": "BF16"}
DEFAULT_SHARD_BYTES: Final = 5_000_000_000


@dataclass(frozen=True)
class ConvertOptions:
    """The options that determine the output's bytes; recorded in the manifest."""

    outliers: Outliers = "calibrated"
    dtype: str = "float16"
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    keep: tuple[str, ...] = ()
    """Regular expressions; linears whose path contains a match stay in 16 bits."""
    quantize: tuple[str, ...] = ()
    """The same, for additional matrices to quantize: head, embeddings."""
    include: tuple[str, ...] = ()
    """The same, for tensor names; if not empty, only tensors that match are converted."""
    exclude: tuple[str, ...] = ()
    """The same; tensors that match are left out."""
    outlier_rule: Rule = DEFAULT_RULE
    max_outliers: float = CAP_FRACTION
    """Largest fraction of an input's columns, or 16 columns if that is more; 0: none."""
    heavy_tails: HeavyTails = "16bit"
    rounding: Rounding = "nearest"
    calibration_tokens: int | None = None
    """Tokens of the built-in text to run the model on, in whole windows; None: all."""
    head: Head = "16bit"

    def __post_init__(self) -> None:
        for name, choices in (
            ("outliers", OUTLIERS),
            ("outlier_rule", RULES),
            ("heavy_tails", HEAVY_TAILS),
            ("rounding", ROUNDINGS),
            ("head", HEADS),
        ):
            if getattr(self, name) not in choices:
                raise ArgumentError(name, expected=" or ".join(choices), found=getattr(self, name))
        if not 0 <= self.max_outliers <= 1:
            raise ArgumentError(
                "max_outliers", expected="a fraction from 0 to 1", found=self.max_outliers
            )
        if self.calibration_tokens is not None and self.calibration_tokens < 1:
            raise ArgumentError("calibration_tokens", expected="1 or more",
                                found=self.calibration_tokens)  # fmt: skip
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
    def choosing(self) -> Choosing:
        """How outlier columns are chosen once activations are known."""
        return Choosing(self.outlier_rule, self.max_outliers, self.heavy_tails)

    @property
    def half(self) -> str:
        """``dtype`` as safetensors spells it."""
        return HALVES[self.dtype]

    @property
    def patterns(self) -> Patterns:
        """The patterns that decide on precision."""
        return Patterns(self.keep, self.quantize, self.head)

    def to_json(self) -> dict[str, Any]:
        """For the manifest: all options, but the head's only if it is not the default, as earlier releases do not know it."""
        values = asdict(self)
        if self.head == "16bit":
            del values["head"]
        return values


def read_options(converted: ConvertedFolder) -> ConvertOptions:
    """The options a folder was converted with, from its manifest.

    Raises:
        JsonFileError: they are malformed, or include some that this release does not know.
    """
    path = converted.folder / MANIFEST_FILE
    choices: dict[str, Any] = {}
    for name, value in converted.manifest.options.items():
        if name not in _KINDS or not _KINDS[name](value):
            raise JsonFileError(f"option '{name}' is unknown or malformed", file=path, found=repr(value),
                                hint="use the int8conv release that wrote this")  # fmt: skip
        choices[name] = tuple(value) if isinstance(value, list) else value
    try:
        return ConvertOptions(**choices)
    except ArgumentError as error:
        raise JsonFileError(f"options: {error.problem}", file=path, expected=error.expected,
                            found=error.found) from None  # fmt: skip


def _is_patterns(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(pattern, str) for pattern in value)


_KINDS: Final[dict[str, Callable[[object], bool]]] = {
    "outliers": lambda value: isinstance(value, str),
    "dtype": lambda value: isinstance(value, str),
    "max_shard_bytes": lambda value: type(value) is int,
    "keep": _is_patterns,
    "quantize": _is_patterns,
    "include": _is_patterns,
    "exclude": _is_patterns,
    "outlier_rule": lambda value: isinstance(value, str),
    "max_outliers": lambda value: type(value) in (int, float),
    "heavy_tails": lambda value: isinstance(value, str),
    "rounding": lambda value: isinstance(value, str),
    "calibration_tokens": lambda value: value is None or type(value) is int,
    "head": lambda value: isinstance(value, str),
}
