"""Choose the next token from logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Final, TypedDict

import torch
from torch import Tensor

from ...errors import ArgumentError, GenerationError

LARGEST: Final = 1e30
"""Above this and below its inverse, options are applied in float64: in float32 they could become 0 or infinite, and 0 / 0 NaN.
Penalties and biases cannot be larger."""
_LONGEST: Final = 128
"""Bits of an integer that an error shows."""


class SamplingOptions(TypedDict, total=False):
    """The fields of ``Sampling`` as keyword arguments; None or absence leaves a field unchanged."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Applied in this order, of which the latter part is also transformers': logit bias, presence and
    frequency penalty, repetition penalty, temperature, top-k, top-p, min-p."""

    temperature: float = 0.0
    """0: take the most likely token; all other options except the repetition penalty then have no effect."""
    top_k: int | None = None
    """Keep the k most likely tokens; None or 0: all."""
    top_p: float | None = None
    """Keep the fewest tokens whose probabilities sum to at least this (arXiv:1904.09751, section 3.1); None or 1: all."""
    min_p: float | None = None
    """Keep tokens with at least this fraction of the highest probability (arXiv:2407.01082, section 3); None or 0: all."""
    repetition_penalty: float = 1.0
    """Makes tokens that have occurred less likely: their logits are divided by this if positive, otherwise multiplied
    (arXiv:1909.05858, section 4.1, as in transformers)."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that was generated before, not of the prompt's."""
    frequency_penalty: float = 0.0
    """The same, times how often it was."""
    logit_bias: Mapping[int, float] | None = None
    """Token id -> what is added to its logit; minus infinity excludes it."""
    seed: int | None = None
    """None: different each time."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, lambda x: 0 <= x < math.inf, "0 or more")
        check_number(
            "repetition_penalty", self.repetition_penalty, lambda x: 0 < x < math.inf, "above 0"
        )
        for name in ("presence_penalty", "frequency_penalty"):
            check_number(name, getattr(self, name), lambda x: abs(x) <= LARGEST, f"a number of at most {LARGEST:g}")  # fmt: skip
        if self.top_k is not None:
            check_integer("top_k", self.top_k, 0)
        if self.top_p is not None:
            check_number("top_p", self.top_p, lambda x: 0 < x <= 1, "above 0, at most 1")
        if self.min_p is not None:
            check_number("min_p", self.min_p, lambda x: 0 <= x <= 1, "0 to 1")
        if self.seed is not None:
            check_integer("seed", self.seed, -(2**63), 2**63 - 1, "a 64-bit integer")
        if self.logit_bias is not None:
            _check_bias(self.logit_bias)

    def changed(self, options: SamplingOptions) -> Sampling:
        """A copy with the given fields replaced.

        Raises:
            ArgumentError: a value is out of range.
            TypeError: there is no such field.
        """
        given: dict[str, Any] = {
            name: value for name, value in options.items() if value is not None
        }
        return replace(self, **given)

    def generator(self) -> torch.Generator:
        """A generator with this seed."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def check_number(
    name: str, value: object, fits: Callable[[float], bool], expected: str
) -> None:  # fmt: skip
    """Raises:
    ArgumentError: no number, or not one that fits.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not fits(_as_float(value)):
        raise ArgumentError(name, expected=expected, found=_shown(value))


def check_integer(
    name: str, value: object, least: int, most: int | None = None, expected: str | None = None
) -> None:
    """Raises:
    ArgumentError: no integer, or not one in this range.
    """
    number = None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)
    if number is None or number < least or (most is not None and number > most):
        raise ArgumentError(name, expected=expected or f"{least} or more", found=_shown(value))


def _as_float(value: Real) -> float:
    """NaN, which fits no option, if it is an integer beyond all floats."""
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _shown(value: object) -> object:
    if isinstance(value, int) and value.bit_length() > _LONGEST:
        return f"an integer of {value.bit_length()} bits"
    return value if isinstance(value, int | float) else repr(value)


def _check_bias(bias: object) -> None:
    if not isinstance(bias, Mapping):
        raise ArgumentError("logit_bias", expected="a mapping of token ids to numbers", found=repr(bias))  # fmt: skip
    for token, amount in bias.items():
        check_integer("logit_bias", token, 0, expected="token ids")
        check_number("logit_bias", amount, lambda x: x <= LARGEST, f"numbers of at most {LARGEST:g}")  # fmt: skip


def penalised(logits: Tensor, penalty: float | Tensor, seen: Tensor) -> Tensor:
    """Logits ``[..., vocab]`` with the repetition penalty (a number, or ``[..., 1]``) applied to the tokens ``seen``, bool
    ``[..., vocab]``."""
    less = torch.where(logits < 0, logits * penalty, logits / penalty)
    limit = torch.finfo(less.dtype).max  # infinity minus infinity would be NaN
    return torch.where(seen, less.clamp(-limit, limit), logits)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution to sample from, ``[vocab]`` -> ``[vocab]`` in float32 or float64, for temperatures above 0.

    Does not include the repetition penalty, which has already been applied to the logits.
    """
    logits = logits - logits.max()
    if _is_extreme(sampling.temperature):
        logits = logits.double()
    logits = logits / sampling.temperature
    if sampling.top_k and sampling.top_k < logits.numel():
        smallest = logits.topk(sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p is not None:
        ordered, order = logits.softmax(-1).sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        dropped = order[1:][
            before[1:] >= sampling.top_p
        ]  # never the first, as a tiny top_p is 0 here
        logits = logits.index_fill(0, dropped, -torch.inf)
    kept = logits.softmax(-1)
    if not sampling.min_p:
        return kept
    return logits.masked_fill(kept < sampling.min_p * kept.max(), -torch.inf).softmax(-1)


def next_token(
    logits: Tensor, sampling: Sampling, generator: torch.Generator, seen: Tensor | None = None
) -> int:
    """Sample from float32 logits ``[vocab]``, with the repetition penalty on the tokens ``seen``, bool ``[vocab]``.

    Raises:
        GenerationError: the logits are NaN or infinite.
    """
    if not math.isfinite(float(logits.max())):
        raise not_numbers(float(logits.max()))
    if seen is not None:
        if _is_extreme(sampling.repetition_penalty):
            logits = logits.double()
        logits = penalised(logits, sampling.repetition_penalty, seen)
    if sampling.temperature == 0:
        return int(logits.argmax())
    drawn = torch.multinomial(probabilities(logits, sampling), 1, generator=generator)
    return int(drawn)


def _is_extreme(option: float) -> bool:
    return not 1 / LARGEST <= option <= LARGEST


def not_numbers(found: object) -> GenerationError:
    """The error for logits that cannot be sampled from."""
    return GenerationError(
        "the model's logits are NaN or infinite", expected="finite values", found=found,
        hint="16-bit activations overflow in some models: try float32 or bfloat16",
    )  # fmt: skip
