"""``generation_config.json``: a checkpoint's defaults for generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...errors import JsonFileError
from ...formats.json_file import read_optional_json
from .wrapped import text_part

FILE: Final = "generation_config.json"

NEUTRAL: Final[dict[str, Any]] = {
    "bad_words_ids": None, "begin_suppress_tokens": None, "diversity_penalty": 0.0,
    "encoder_repetition_penalty": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "guidance_scale": None, "min_length": 0, "min_new_tokens": None,
    "no_repeat_ngram_size": 0, "num_beams": 1, "penalty_alpha": None, "sequence_bias": None,
    "suppress_tokens": None, "top_h": None, "typical_p": 1.0,
}  # fmt: skip
"""Keys that would change the text but are not supported, and the value with which each has no effect."""


Fits = Callable[[float], bool]
_DRAWING: Final[dict[str, Fits]] = {
    "temperature": lambda x: x >= 0,
    "top_k": lambda x: x >= 0 and x == int(x),
    "top_p": lambda x: 0 < x <= 1,
    "min_p": lambda x: 0 <= x <= 1,
}
"""Keys that are read for sampling, and their valid values."""


@dataclass(frozen=True)
class GenerationDefaults:
    """The defaults; None if the file does not set one."""

    end_tokens: frozenset[int] = frozenset()
    temperature: float = 0.0
    """0 unless ``do_sample`` is true, then 1 unless the file sets one."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    """Keys that would change the text but are not followed, as ``key=value``."""


def read_generation_defaults(folder: Path, config: Mapping[str, Any]) -> GenerationDefaults:
    """Read a folder's ``generation_config.json``, if it has one; end tokens otherwise come from ``config.json``.

    Reads ``eos_token_id``, ``do_sample``, ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty``,
    ``max_new_tokens`` and ``stop_strings``. Invalid values of keys that only sampling reads count as absent: files have
    ``"top_k": -1`` for off, or arbitrary values next to ``"do_sample": false``.

    Raises:
        JsonFileError: the file is not a JSON object, or one of the other keys has an invalid value.
    """
    file = _File(folder / FILE, read_optional_json(folder / FILE))
    ends = config.get("eos_token_id", text_part(dict(config)).get("eos_token_id"))
    drawn = file.flag("do_sample")
    usable = {key: file.usable(key, fits) for key, fits in _DRAWING.items()}
    temperature, top_k = usable["temperature"], usable["top_k"]
    count = file.number("max_new_tokens", "an integer above 0", lambda x: x >= 1 and x == int(x))
    penalty = file.number("repetition_penalty", "above 0", lambda x: x > 0)
    return GenerationDefaults(
        end_tokens=_end_tokens(file.values.get("eos_token_id", ends)),
        temperature=(1.0 if temperature is None else temperature) if drawn else 0.0,
        top_k=None if top_k is None else int(top_k),
        top_p=usable["top_p"],
        min_p=usable["min_p"],
        repetition_penalty=1.0 if penalty is None else penalty,
        max_new_tokens=None if count is None else int(count),
        stop=file.strings("stop_strings"),
        unsupported=(*_not_followed(file, usable if drawn else {}), *_not_supported(file)),
    )


def _not_followed(file: _File, usable: Mapping[str, float | None]) -> Iterator[str]:
    """Sampling keys with an invalid value, except the usual ways to say off."""
    for key, value in usable.items():
        found = file.values.get(key)
        off = found is None or (key == "top_k" and found == -1)
        if value is None and not off:
            yield f"{key}={found!r}"


def _not_supported(file: _File) -> Iterator[str]:
    for key, neutral in NEUTRAL.items():
        if file.values.get(key, neutral) not in (neutral, None, [], {}):
            yield f"{key}={file.values[key]!r}"


@dataclass(frozen=True)
class _File:
    path: Path
    values: Mapping[str, Any]

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._malformed(key, "true or false")
        return bool(value)

    def number(self, key: str, expected: str, fits: Fits) -> float | None:
        value = self.usable(key, fits)
        if value is None and self.values.get(key) is not None:
            raise self._malformed(key, expected)
        return value

    def usable(self, key: str, fits: Fits) -> float | None:
        """A valid number; None for anything else."""
        value = self.values.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return float(value) if abs(value) < 2**53 and fits(value) else None

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key)
        values = [value] if isinstance(value, str) else value or []
        if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
            raise self._malformed(key, "strings that are not empty")
        return tuple(values)

    def _malformed(self, key: str, expected: str) -> JsonFileError:
        found = repr(self.values[key])
        return JsonFileError(f"key '{key}'", file=self.path, expected=expected, found=found)


def _end_tokens(value: object) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    return frozenset(v for v in values if type(v) is int)
