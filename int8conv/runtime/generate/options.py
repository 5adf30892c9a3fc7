"""Options of generation, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from ...errors import ArgumentError
from ..text.stopping import read_stops
from .constraint import Constraint
from .sampler import LogitsProcessor
from .sampling import Sampling, SamplingOptions, check_integer

OnText = Callable[[str], None]
MOST_TOP: Final = 1000
"""Limit on ``top_logprobs``."""


class GenerateOptions(SamplingOptions, total=False):
    """The keyword arguments of ``generate`` and similar functions; absent ones default to the checkpoint's settings, if any."""

    max_new_tokens: int | None
    """Largest number of new tokens; None: from generation_config.json, or 128, or fewer if the context ends."""
    min_new_tokens: int
    """Ignore end tokens until this many tokens have been generated."""
    stop: str | Sequence[str] | None
    """Strings at which to stop, which are not part of the result; an empty list: none; None: from generation_config.json."""
    end_tokens: Sequence[int | str]
    """Tokens to stop at, by id or text, in addition to the model's own."""
    logprobs: bool
    """Also return each sampled token's log-probability."""
    top_logprobs: int
    """Also return this many of the most likely tokens at each position, with their log-probabilities."""
    logits_processor: LogitsProcessor | None
    """Called before each token with the tokens so far and the logits; returns the logits to sample from."""
    constraint: Constraint | None
    """The form that the text must have; needs the extra ``structured``."""
    special_tokens: bool
    """Keep the text of special tokens."""
    prompt_lookup: bool
    """Guess tokens from what the text had before, and check several at once: faster where it repeats itself, with the same result. For one
    prompt at a time; without effect in models with recurrent layers or rotary frequencies that depend on the length."""


@dataclass(frozen=True)
class Asked:
    """Checked options for all prompts of a call; those that default to the model's settings may be None."""

    sampling: Sampling
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop: tuple[str, ...] | None = None
    end_tokens: tuple[int | str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    logits_processor: LogitsProcessor | None = None
    constraint: Constraint | None = None
    special_tokens: bool = False
    prompt_lookup: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            check_integer("max_new_tokens", self.max_new_tokens, 0)
        check_integer("min_new_tokens", self.min_new_tokens, 0)
        check_integer("top_logprobs", self.top_logprobs, 0, MOST_TOP, f"0 to {MOST_TOP}")
        if self.logits_processor is not None and not callable(self.logits_processor):
            raise ArgumentError("logits_processor", expected="a function", found=repr(self.logits_processor))  # fmt: skip

        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise ArgumentError("constraint", expected="a Constraint", found=repr(self.constraint))

    def for_prompt(self, i: int) -> Asked:
        """The options of prompt ``i`` of several: with a seed, each is sampled independently."""
        seed = self.sampling.seed
        if seed is None or i == 0:
            return self
        return replace(self, sampling=replace(self.sampling, seed=following_seed(seed, i)))


def following_seed(seed: int, i: int) -> int:
    """The seed of text ``i`` of several: 64 bits, of which the largest is followed by the smallest."""
    return (seed + i + 2**63) % 2**64 - 2**63


_SAMPLING: Final = SamplingOptions.__annotations__.keys()


def read_options(sampling: Sampling, options: GenerateOptions) -> Asked:
    """Combine options with a sampling.

    Raises:
        ArgumentError: an option is out of range or has the wrong type.
        TypeError: there is no such option.
    """
    if not isinstance(sampling, Sampling):
        raise ArgumentError("sampling", expected="a Sampling or None", found=repr(sampling))
    given: dict[str, Any] = dict(options)  # of the types that Asked checks
    for name in given.keys() - GenerateOptions.__annotations__.keys():
        raise TypeError(f"there is no option '{name}' of generation")
    chosen = {name: given.pop(name) for name in _SAMPLING if name in given}
    stop = given.pop("stop", None)
    ends = given.pop("end_tokens", None)
    return Asked(
        sampling.changed(cast("SamplingOptions", chosen)), stop=None if stop is None else read_stops(stop),
        end_tokens=() if ends is None else _read_ends(ends), **given,
    )  # fmt: skip


def _read_ends(ends: object) -> tuple[int | str, ...]:
    values = (ends,) if isinstance(ends, int | str) else ends
    if not isinstance(values, Iterable):
        raise ArgumentError("end_tokens", expected="ids or texts of tokens", found=repr(ends))
    read = tuple(values)
    for each in read:
        if not isinstance(each, str):
            check_integer("end_tokens", each, 0, expected="ids or texts of tokens")
    return read
