"""Which files of a checkpoint hold its weights, by name, in the order in which transformers looks for them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from ...errors import ArgumentError, MissingShardError

INDEX_SUFFIX: Final = ".index.json"


@dataclass(frozen=True)
class WeightFormat:
    """A format of weights files, and their standard names."""

    single: str
    suffixes: tuple[str, ...]

    @property
    def index(self) -> str:
        """Name of the index, which maps each tensor to one of several files."""
        return self.single + INDEX_SUFFIX

    @property
    def stem(self) -> str:
        """Common prefix of the names of several files."""
        return self.single.rpartition(".")[0]


SAFETENSORS: Final = WeightFormat("model.safetensors", (".safetensors",))
PICKLES: Final = WeightFormat("pytorch_model.bin", (".bin", ".pth", ".pt"))
FORMATS: Final = (SAFETENSORS, PICKLES)
"""In order of preference."""

_NUMBERED: Final = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})(\.\w+)", re.ASCII)
_NOT_WEIGHTS: Final = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state\w*|random_states\w*|adapter_model)\.\w+"
    r"|\..*",  # hidden files: macOS adds a '._NAME' for each file on foreign file systems
    re.ASCII | re.DOTALL,
)
"""Files that trainers and operating systems leave next to the weights."""


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a checkpoint: an index, or the names of the files."""

    format: WeightFormat
    index: str | None
    names: tuple[str, ...] = ()
    """Used without an index; in order."""

    @property
    def standard(self) -> bool:
        """Whether they have the standard names."""
        return self.index == self.format.index or self.names == (self.format.single,)


def find_weight_files(
    names: Collection[str], where: object, only: str | None = None
) -> WeightFiles | None:
    """Find the weights among a folder's files; None if there are none.

    As in transformers, standard names take precedence, and a single file over an index; then an index with another name, files
    numbered ``x-00001-of-00003`` (``model-...`` first), and finally a single file.

    Args:
        names: names of all files.
        where: the folder's name for error messages.
        only: the index or weights file to use, regardless of the others.

    Raises:
        MissingShardError: one of several numbered files is missing.
        ArgumentError: several files and no way to choose, or ``only`` is not the name of a weights file.
    """
    if only is not None:
        return _named(only, where)
    for kind in FORMATS:
        if kind.single in names:
            return WeightFiles(kind, None, (kind.single,))
        if kind.index in names:
            return WeightFiles(kind, kind.index)
    for kind in FORMATS:
        indexes = [name for name in names if _is_index(name, kind)]
        files = candidates(names, kind)
        if len(indexes) == 1:
            return WeightFiles(kind, indexes[0])
        if files:
            return WeightFiles(kind, None, _complete(files, kind, where))
    return None


def candidates(names: Iterable[str], kind: WeightFormat) -> list[str]:
    """The names that may be weights of that format."""
    return [n for n in names if n.endswith(kind.suffixes) and not _NOT_WEIGHTS.fullmatch(n)]


def is_weights_name(name: str) -> bool:
    """Whether a file of that name is a weights file or an index."""
    return any(_is_index(name, kind) or name.endswith(kind.suffixes) for kind in FORMATS)


def _is_index(name: str, kind: WeightFormat) -> bool:
    stem = name.removesuffix(INDEX_SUFFIX)
    return stem != name and stem.endswith(kind.suffixes) and not name.startswith(".")


def _named(name: str, where: object) -> WeightFiles:
    for kind in FORMATS:
        if _is_index(name, kind):
            return WeightFiles(kind, name)
        if name.endswith(kind.suffixes):
            return WeightFiles(kind, None, (name,))
    expected = " or ".join(suffix for kind in FORMATS for suffix in kind.suffixes)
    raise ArgumentError("not a weights file", file=f"{where}/{name}", expected=expected)


def _complete(files: Collection[str], kind: WeightFormat, where: object) -> tuple[str, ...]:
    """A single file, or a complete set of numbered files."""
    series: dict[tuple[str, str, str], dict[int, str]] = {}
    for name in files:
        match = _NUMBERED.fullmatch(name)
        key = (match[1], match[3], match[4]) if match else (name, "1", "")
        series.setdefault(key, {})[int(match[2]) if match else 1] = name
    usual = [key for key in series if key[0] == kind.stem] if len(series) > 1 else list(series)
    if len(usual) != 1:
        raise ArgumentError(
            "several weights files, and no index", file=where, found=some(sorted(files)),
            hint="pass one of the files instead of the folder",
        )  # fmt: skip
    (stem, total, suffix), numbers = usual[0], series[usual[0]]
    for number in range(1, min(int(total), len(numbers) + 1) + 1):  # the total may be a lie
        if number not in numbers:
            name = f"{stem}-{number:0{len(total)}}-of-{total}{suffix}"
            raise MissingShardError("shard is missing", file=f"{where}/{name}", found=some(sorted(files)),
                                    hint="download the rest")  # fmt: skip
    if len(numbers) > int(total):
        raise ArgumentError("there are more weights files than their names say", file=where, expected=total,
                            found=some(sorted(files)))  # fmt: skip
    return tuple(numbers[number] for number in sorted(numbers))


def some(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    first = list(names)
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")


def weights_like(names: Iterable[str]) -> str:
    """Some of the files that hold weights in any format, for a message."""
    suffixes = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".onnx", ".h5", ".msgpack")
    return some(sorted(n for n in names if n.endswith(suffixes))) or "no weights"
