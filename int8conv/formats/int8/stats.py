"""The statistics file of ``int8conv calibrate``: activation statistics of each input (SPEC.md section 7)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from ...errors import Int8convError, StatsError
from ..json_file import INDEX, check_values, unique_fields
from ..outputs import OutputKind, write_output
from ..safetensors.dtypes import byte_count, numpy_dtype
from ..safetensors.header import Header, TensorInfo, build_header, read_header
from ..safetensors.storage import LocalFile, Reader

_T = TypeVar("_T")

STATS_FORMAT: Final = "int8conv stats"
STATS_VERSION: Final = "1"


def _is_statistics(path: Path) -> bool:
    try:
        return read_header(path).metadata.get("format") == STATS_FORMAT
    except Int8convError:
        return False


STATISTICS: Final = OutputKind("a statistics file", _is_statistics)
LARGE: Final = 6.0
"""Magnitude from which LLM.int8() calls a value an outlier (arXiv:2208.07339, section 3.2)."""


@dataclass(frozen=True)
class InputStats:
    """Statistics of one input; arrays ``[in]``, one value per channel."""

    absmax: npt.NDArray[np.float32]
    """Largest magnitude."""
    large: npt.NDArray[np.int64]
    """Number of positions whose magnitude is at least 6.0."""
    squares: npt.NDArray[np.float64]
    """``[2, in]``: sum of squares over all positions; see ``add_exactly``."""
    fourths: npt.NDArray[np.float64]
    """``[2, in]``: sum of fourth powers."""
    weight_error: npt.NDArray[np.float32]
    """Square root of the summed squared error that int8 rows cause in the column, over all rows of the input's linears."""


_DTYPES: Final = {
    "absmax": "F32", "large": "I64", "squares": "F64", "fourths": "F64", "weight_error": "F32",
}  # fmt: skip
MOST_CHANNELS: Final = 1 << 22
"""Largest number of channels accepted for an input; the widest models have a hundred thousand."""
MOST_TOKENS: Final = 1 << 50
"""Largest number of tokens of a text, and of positions counted: their sums stay within 64 bits."""
_PAIRS: Final = ("squares", "fourths")
assert list(_DTYPES) == [f.name for f in fields(InputStats)]


@dataclass(frozen=True)
class Stats:
    """The result of a calibration."""

    source: str
    """Name of the checkpoint, for display."""
    fingerprint: str
    """Fingerprint of the checkpoint's tensors."""
    texts: tuple[tuple[str | None, int], ...]
    """Checksum (None: random tokens) and number of tokens of each text."""
    context: int
    """Tokens per window."""
    linears: dict[str, tuple[str, ...]]
    """The linears of each input, keyed by the path of its first linear."""
    normalised: tuple[str, ...]
    """Inputs that come directly from a norm."""
    inputs: dict[str, InputStats]

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.texts)

    @property
    def random(self) -> bool:
        """Whether any text was random tokens."""
        return any(text is None for text, _ in self.texts)


def input_stats(stats: Stats, linear: str) -> InputStats | None:
    """The statistics of the input of a linear, by its path; None if there are none."""
    if linear in stats.inputs:
        return stats.inputs[linear]
    inputs = (path for path, linears in stats.linears.items() if linear in linears)
    return stats.inputs.get(next(inputs, ""))


def add_exactly(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sum of two sums ``[2, n]``, each given as the nearest float64 and the remainder.

    With 106 bits, terms with float32 precision add up without rounding, so that the order does not matter (Knuth's TwoSum).
    """
    high, rest = _two_sum(a[0], b[0])
    return np.stack(_two_sum(high, rest + (a[1] + b[1])))


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def write_stats(stats: Stats, path: Path, sources: Iterable[Path] = ()) -> None:
    """Write a statistics file atomically; an existing statistics file is replaced.

    Args:
        stats: the statistics.
        path: the output; a file of any other kind is never replaced.
        sources: what was measured, which is never written to (see ``outputs``).

    Raises:
        OutputError: ``path`` exists and is something else, or it cannot be written.
    """
    tensors, arrays, position = [], [], 0
    for name, array, dtype in _tensors(stats):
        nbytes = byte_count(dtype, array.shape)
        tensors.append(TensorInfo(name, dtype, array.shape, position, position + nbytes))
        arrays.append(array.astype(numpy_dtype(dtype)).tobytes())
        position += nbytes
    about = {
        "source": stats.source, "fingerprint": stats.fingerprint,
        "texts": [{"xxh3_128": text, "tokens": tokens} for text, tokens in stats.texts],
        "context": stats.context, "linears": stats.linears, "normalised": stats.normalised,
    }  # fmt: skip
    metadata = {"format": STATS_FORMAT, "version": STATS_VERSION, "stats": json.dumps(about)}
    data = b"".join([build_header(tensors, metadata, alignment=8), *arrays])
    write_output(path, data, STATISTICS, sources)


def _tensors(stats: Stats) -> Iterator[tuple[str, npt.NDArray[Any], str]]:
    """Tensors with 8-byte elements first, so that all are aligned."""
    for kind, dtype in sorted(_DTYPES.items(), key=lambda item: item[1][1:], reverse=True):
        for path, found in stats.inputs.items():
            yield f"{path}.{kind}", getattr(found, kind), dtype


def read_stats(path: str | os.PathLike[str]) -> Stats:
    """Read and check a statistics file.

    Raises:
        NotFoundError: it cannot be opened.
        SafetensorsError: it is not a safetensors file.
        StatsError: it violates this format; names the tensor.
    """
    path = Path(path)
    header = read_header(path)
    metadata = header.metadata
    if metadata.get("format") != STATS_FORMAT:
        raise StatsError("not a statistics file", file=path, expected=f"format {STATS_FORMAT!r}",
                         found=repr(metadata.get("format")), hint="make one with 'int8conv calibrate'")  # fmt: skip
    if metadata.get("version") != STATS_VERSION:
        raise StatsError("unknown version of the statistics format", file=path, expected=STATS_VERSION,
                         found=repr(metadata.get("version")))  # fmt: skip
    try:
        about = _About(metadata.get("stats", ""))
    except (ValueError, RecursionError) as error:
        raise StatsError(
            f"field 'stats' of the metadata is malformed: {error}", file=path
        ) from error
    linears = about.linears()
    known = {f"{input_}.{kind}" for input_ in linears for kind in _DTYPES}
    for name in header.tensors:
        if name not in known:
            raise StatsError("belongs to no input", file=path, tensor=name)
    end = header.payload_offset + max((t.end for t in header.tensors.values()), default=0)
    with LocalFile(path).open(end) as reader:
        inputs = {input_: _read_input(path, header, reader, input_) for input_ in linears}
    return about.stats(inputs)


_CHECKSUM: Final = re.compile("[0-9a-f]{32}")


class _About:
    """The metadata field, checked against SPEC.md section 7."""

    def __init__(self, text: str) -> None:
        check_values(text, INDEX)
        self._fields = json.loads(text, object_pairs_hook=unique_fields)
        if not isinstance(self._fields, dict):
            raise ValueError("not an object")
        self._source = self._field("source", str, "text")
        self._fingerprint = self._field("fingerprint", str, "text")
        if not _CHECKSUM.fullmatch(self._fingerprint):
            raise ValueError(f"'fingerprint' is not 32 hexadecimal digits: {self._fingerprint!r}")
        self._context = _count("context", self._field("context", int, "an integer"))
        self._texts = tuple(map(_text, self._field("texts", list, "a list")))
        if not self._texts:
            raise ValueError("'texts' is empty")
        self._linears = self._field("linears", dict, "an object")
        _check_linears(self._linears)
        self._normalised = self._field("normalised", list, "a list")
        for path in self._normalised:
            if not isinstance(path, str) or path not in self._linears:
                raise ValueError(f"'normalised' names no input: {path!r}")
        if len(set(self._normalised)) != len(self._normalised):
            raise ValueError("'normalised' names an input twice")

    def linears(self) -> dict[str, tuple[str, ...]]:
        return {path: tuple(paths) for path, paths in self._linears.items()}

    def stats(self, inputs: dict[str, InputStats]) -> Stats:
        return Stats(
            self._source, self._fingerprint, self._texts, self._context, self.linears(),
            tuple(self._normalised), inputs,
        )  # fmt: skip

    def _field(self, name: str, kind: type[_T], called: str) -> _T:
        if name not in self._fields:
            raise ValueError(f"'{name}' is missing")
        value = self._fields[name]
        if type(value) is not kind:
            raise ValueError(f"'{name}' is not {called}: {value!r:.100}")
        return value


def _check_linears(linears: dict[str, Any]) -> None:
    """Raise ValueError unless each input's list of linears begins with it and each linear has exactly one input."""
    seen: set[str] = set()
    for path, paths in linears.items():
        if type(paths) is not list or not all(type(each) is str for each in paths):
            raise ValueError(f"'linears' of {path!r} is not a list of strings: {paths!r:.100}")
        if paths[:1] != [path]:
            raise ValueError(f"'linears' of {path!r} does not begin with it")
        if len(set(paths)) != len(paths) or not seen.isdisjoint(paths):
            raise ValueError(f"a linear of {path!r} is in 'linears' twice")
        seen.update(paths)


def _text(value: object) -> tuple[str | None, int]:
    """A text's checksum (None: random tokens) and number of tokens."""
    if type(value) is not dict or not {"xxh3_128", "tokens"} <= set(value):
        raise ValueError(f"'texts' has a malformed entry: {value!r:.100}")
    checksum = value["xxh3_128"]
    if checksum is not None and not (type(checksum) is str and _CHECKSUM.fullmatch(checksum)):
        raise ValueError(f"'xxh3_128' is not 32 hexadecimal digits or null: {checksum!r:.100}")
    return checksum, _count("tokens", value["tokens"])


def _count(name: str, value: object) -> int:
    if type(value) is not int or not 0 < value <= MOST_TOKENS:
        raise ValueError(f"'{name}' is not a number of tokens: {value!r:.100}")
    return value


def _read_input(path: Path, header: Header, reader: Reader, input_: str) -> InputStats:
    arrays: dict[str, npt.NDArray[Any]] = {}
    for kind, dtype in _DTYPES.items():
        name = f"{input_}.{kind}"
        info = header.tensors.get(name)
        if info is None:
            raise StatsError("missing from the statistics", file=path, tensor=name)
        channels = arrays["absmax"].shape if arrays else info.shape[-1:]
        shape = (2, *channels) if kind in _PAIRS else channels
        if info.dtype != dtype or info.shape != shape or not channels:
            raise StatsError(
                "wrong dtype or shape", file=path, tensor=name, expected=f"{dtype} {list(shape)}",
                found=f"{info.dtype} {list(info.shape)}",
            )  # fmt: skip
        if channels[0] > MOST_CHANNELS:
            raise StatsError("more channels than an input has", file=path, tensor=name,
                             expected=f"at most {MOST_CHANNELS}", found=f"{channels[0]}")  # fmt: skip
        data = bytearray(info.end - info.begin)
        reader.read_into(memoryview(data), header.payload_offset + info.begin)
        array = np.frombuffer(data, numpy_dtype(dtype)).reshape(shape)
        with np.errstate(all="ignore"):
            values = array.sum(axis=0) if kind in _PAIRS else array
        wrong = ~np.isfinite(values) | (values < 0)
        if kind == "large":
            wrong |= values > MOST_TOKENS
        if wrong.any():
            raise StatsError("negative, NaN or infinite", file=path, tensor=name,
                             found=f"{values[wrong][0]} in channel {int(wrong.argmax())}")  # fmt: skip
        arrays[kind] = array
    return InputStats(**arrays)
