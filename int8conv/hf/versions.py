"""Supported versions of transformers."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from ..errors import ArgumentError, UnsupportedFeatureError

OLDEST: Final = (5, 0)
DEQUANTIZES_ON_LOAD: Final = (5, 21)
"""From this version on, tensors read by a quantizer's converter keep their dtype."""


def transformers_version() -> tuple[int, int]:
    """Major and minor.

    Raises:
        ArgumentError: it is not installed.
    """
    try:
        major, minor, *_ = version("transformers").split(".")
    except PackageNotFoundError:
        raise ArgumentError("int8conv.hf needs transformers", hint="pip install 'int8conv[hf]'") from None  # fmt: skip
    return int(major), int(minor)


def check_versions() -> None:
    """Raise ArgumentError unless a supported version of transformers is installed."""
    if (found := transformers_version()) < OLDEST:
        raise ArgumentError(
            "int8conv.hf needs another transformers", expected=f"{_text(OLDEST)} or newer",
            found=_text(found), hint="pip install -U 'int8conv[hf]'",
        )  # fmt: skip


def check_dequantizes(linear: str) -> None:
    """Raise UnsupportedFeatureError if a linear cannot be dequantized while loading."""
    if (found := transformers_version()) < DEQUANTIZES_ON_LOAD:
        raise UnsupportedFeatureError(
            "transformers has no linear for it, and is too old to dequantize it on load", tensor=f"{linear}.weight",
            expected=f"transformers {_text(DEQUANTIZES_ON_LOAD)} or newer", found=_text(found),
        )  # fmt: skip


def _text(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))
