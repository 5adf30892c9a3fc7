"""Every error that a user can cause, in one tree; the built-in class that it also derives from is in brackets.

    Int8convError
    |- NotFoundError (FileNotFoundError)            A path does not exist or cannot be read, or holds no checkpoint
    |- ArgumentError (ValueError)                   An option or argument has a value that cannot be used
    |- HubError (OSError)                           A checkpoint cannot be fetched from the hub, or uploaded to it
    |  |- HubNotFoundError (FileNotFoundError)      There is no such repository, revision or file on the hub
    |  |- HubAccessError (PermissionError)          The repository is private, gated or disabled, and this user has no access
    |  |- HubUnavailableError (ConnectionError)     The hub cannot be reached, fails, or limits requests
    |  |- HubExistsError (FileExistsError)          The repository to upload to has other content; it is never replaced unasked
    |  `- HubChangedError                           A file on the hub changed while it was being read
    |- OutputError (OSError)                        The output cannot be written
    |  |- OutputExistsError (FileExistsError)       The output already exists; it is never touched without force
    |  |- OutputOverlapError                        The output is the source, contains it, or lies inside one of its files
    |  |- OutputBusyError                           Another process is writing the output
    |  |- NotWritableError (PermissionError)        The output, or its parent folder, cannot be written to
    |  `- NoSpaceError                              The disk is full
    |- DeviceError (RuntimeError)                   The GPU is out of memory or reports an error, or a kernel cannot be compiled for it
    |- SafetensorsError (ValueError)                A file breaks the safetensors format
    |  |- TruncatedFileError                        The file ends before its header or payload does
    |  |- HeaderTooLongError                        The header is longer than the format allows
    |  |- HeaderSyntaxError                         The header is not the JSON that the format requires
    |  |- UnsupportedDtypeError                     A tensor has a dtype that is unknown or cannot be used here
    |  |- ByteCountError                            Shape times item size differs from the number of bytes between the offsets
    |  `- OffsetError                               Tensors overlap, leave gaps, or extend past the end of the payload
    |- CheckpointError (ValueError)                 A checkpoint folder is inconsistent
    |  |- PointerFileError                          A file is only a Git LFS pointer
    |  |- AdapterError                              The weights belong to an adapter (such as LoRA), not to a model
    |  |- WrappedNamesError                         Tensor names carry the prefix of a training wrapper
    |  |- PickleFileError                           A PyTorch pickle cannot be read safely, or holds something other than named tensors
    |  |- JsonFileError                             A config, index or manifest is not the expected JSON
    |  |- UnsafePathError                           The index names a file outside the folder
    |  |- FileChangedError                          A file was replaced or overwritten while it was in use
    |  |- MissingShardError (FileNotFoundError)     A file that the index names is missing
    |  |- DuplicateTensorError                      Two files contain a tensor of the same name
    |  |- MissingTensorError                        A tensor that is listed or needed is missing
    |  |- ShapeError                                A tensor's shape is not what the config implies
    |  |- AlreadyQuantizedError                     The source is already quantized
    |  |- NonFiniteWeightError                      A weight is NaN or infinite
    |  `- HalfOverflowError                         A 32-bit weight does not fit the requested 16-bit type
    |- ConvertedFormatError (ValueError)            A converted folder breaks the format's specification (formats/SPEC.md)
    |  |- UnknownVersionError                       This release does not read this version of the format
    |  |- NotConvertedError                         The folder is not a converted checkpoint
    |  |- CompanionError                            A companion of a tensor is missing, or has the wrong dtype or shape
    |  |- OutlierIndexError                         Outlier columns are out of range, not ascending, or not shared within a group
    |  |- NumberError                               The format does not allow this code, row scale or padding byte
    |  |- LayoutError                               Payload or tensors are not aligned or adjacent as specified
    |  |- SourceMismatchError                       A converted folder was not made from this source, or its values are wrong
    |  `- ChecksumError                             Bytes do not match their checksum
    |- QualityError                                 A converted linear is less exact than required
    |- UnsupportedModelError (NotImplementedError)  The runtime cannot run this model
    |  |- UnknownFamilyError                        The runtime does not know this model_type
    |  `- UnsupportedFeatureError                   The config uses a feature that the runtime lacks
    |- TokenizerError (ValueError)                  Tokenizer files are missing or unusable
    |- CalibrationError (ValueError)                Calibration cannot run on this input
    |- StatsError (ValueError)                      A statistics file is malformed, or belongs to another checkpoint
    |- EvaluationError (ValueError)                 A model cannot be evaluated on this text, or overflows on it
    `- GenerationError (ValueError)                 The model cannot handle this prompt or limit

This module imports nothing from the package, so that every room may import it.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar, Final


class Int8convError(Exception):
    """Base of all errors of this package; its text is one line for the user.

    Subclasses of ``OSError`` also have ``errno`` (None if no number fits), ``strerror`` and ``filename``.

    Args:
        problem: what is wrong; a phrase without a full stop.
        file: path of the offending file or folder.
        tensor: name of the offending tensor.
        expected: what was expected.
        found: what was found instead.
        hint: what the user can do about it.
    """

    _errno: ClassVar[int | None] = None

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        tensor: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = None if file is None else str(file)
        self.tensor = tensor
        self.expected = expected
        self.found = found
        self.hint = hint
        super().__init__(self._line())
        if isinstance(self, OSError):
            _describe(self, self._errno, problem, self.file)

    def __str__(self) -> str:
        return self._line()

    def __reduce__(self) -> tuple[object, ...]:
        state = {name: value for name, value in vars(self).items() if name not in _PARTS}
        return _rebuilt, (type(self), {name: getattr(self, name) for name in _PARTS}), state

    def about(self, tensor: str) -> Int8convError:
        """The same error with the tensor's name added, where the code that raised it did not know it."""
        parts = {name: getattr(self, name) for name in _PARTS}
        return _rebuilt(type(self), parts | {"tensor": self.tensor or tensor})

    def _line(self) -> str:
        line = f"{_shortened(self.file, 1000)}: " if self.file is not None else ""
        line += f"tensor '{_shortened(self.tensor)}': " if self.tensor is not None else ""
        line += _shortened(self.problem)
        comparison = [
            f"{word} {_shortened(value)}"
            for word, value in (("expected", self.expected), ("found", self.found))
            if value is not None
        ]
        line += f": {', '.join(comparison)}" if comparison else ""
        line += f" ({_shortened(self.hint)})" if self.hint else ""
        return printable(" ".join(line.split()))


_PARTS: Final = ("problem", "file", "tensor", "expected", "found", "hint")


def _describe(error: OSError, number: int | None, problem: str, file: str | None) -> None:
    error.errno, error.strerror, error.filename = number, problem, file


def _rebuilt(kind: type[Int8convError], parts: dict[str, Any]) -> Int8convError:
    """For pickling, which would otherwise call the class with the whole line."""
    return kind(**parts)


def printable(text: str) -> str:
    """Text from a file, safe for a terminal: control characters, direction overrides, invisible and invalid characters become
    escapes such as ``\\x1b``.

    Errors use it, and so does everything that the command line prints (``cli/output.py``).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shortened(value: object, most: int = 400) -> str:
    """A value as a message shows it: malformed files may contain very long ones."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}..."


class NotFoundError(Int8convError, FileNotFoundError):
    """A path does not exist or cannot be read, or holds no checkpoint."""

    _errno = errno.ENOENT


class ArgumentError(Int8convError, ValueError):
    """An option or argument has a value that cannot be used."""


class HubError(Int8convError, OSError):
    """A checkpoint cannot be fetched from the hub, or uploaded to it."""


class HubNotFoundError(HubError, FileNotFoundError):
    """There is no such repository, revision or file on the hub."""

    _errno = errno.ENOENT


class HubAccessError(HubError, PermissionError):
    """The repository is private, gated or disabled, and this user has no access."""

    _errno = errno.EACCES


class HubUnavailableError(HubError, ConnectionError):
    """The hub cannot be reached, fails, or limits requests."""


class HubExistsError(HubError, FileExistsError):
    """The repository to upload to has other content; it is never replaced unasked."""

    _errno = errno.EEXIST


class HubChangedError(HubError):
    """A file on the hub changed while it was being read."""


class OutputError(Int8convError, OSError):
    """The output cannot be written."""


class OutputExistsError(OutputError, FileExistsError):
    """The output already exists; it is never touched without ``force``."""

    _errno = errno.EEXIST


class OutputOverlapError(OutputError):
    """The output is the source, contains it, or lies inside one of its files."""


class OutputBusyError(OutputError):
    """Another process is writing the output."""


class NotWritableError(OutputError, PermissionError):
    """The output, or its parent folder, cannot be written to."""

    _errno = errno.EACCES


class NoSpaceError(OutputError):
    """The disk is full."""

    _errno = errno.ENOSPC


class DeviceError(Int8convError, RuntimeError):
    """The GPU is out of memory or reports an error, or a kernel cannot be compiled for it."""


class SafetensorsError(Int8convError, ValueError):
    """A file breaks the safetensors format."""


class TruncatedFileError(SafetensorsError):
    """The file ends before its header or payload does."""


class HeaderTooLongError(SafetensorsError):
    """The header is longer than the format allows."""


class HeaderSyntaxError(SafetensorsError):
    """The header is not the JSON that the format requires."""


class UnsupportedDtypeError(SafetensorsError):
    """A tensor has a dtype that is unknown or cannot be used here."""


class ByteCountError(SafetensorsError):
    """Shape times item size differs from the number of bytes between the offsets."""


class OffsetError(SafetensorsError):
    """Tensors overlap, leave gaps, or extend past the end of the payload."""


class CheckpointError(Int8convError, ValueError):
    """A checkpoint folder is inconsistent."""


class PointerFileError(CheckpointError):
    """A file is only a Git LFS pointer."""


class AdapterError(CheckpointError):
    """The weights belong to an adapter (such as LoRA), not to a model."""


class WrappedNamesError(CheckpointError):
    """Tensor names carry the prefix of a training wrapper."""


class PickleFileError(CheckpointError):
    """A PyTorch pickle cannot be read safely, or holds something other than named tensors."""


class JsonFileError(CheckpointError):
    """A config, index or manifest is not the expected JSON."""


class UnsafePathError(CheckpointError):
    """The index names a file outside the folder."""


class FileChangedError(CheckpointError):
    """A file was replaced or overwritten while it was in use."""


class MissingShardError(CheckpointError, FileNotFoundError):
    """A file that the index names is missing."""

    _errno = errno.ENOENT


class DuplicateTensorError(CheckpointError):
    """Two files contain a tensor of the same name."""


class MissingTensorError(CheckpointError):
    """A tensor that is listed or needed is missing."""


class ShapeError(CheckpointError):
    """A tensor's shape is not what the config implies."""


class AlreadyQuantizedError(CheckpointError):
    """The source is already quantized."""


class NonFiniteWeightError(CheckpointError):
    """A weight is NaN or infinite."""


class HalfOverflowError(CheckpointError):
    """A 32-bit weight does not fit the requested 16-bit type."""


class ConvertedFormatError(Int8convError, ValueError):
    """A converted folder breaks the format's specification (``formats/SPEC.md``)."""


class UnknownVersionError(ConvertedFormatError):
    """This release does not read this version of the format."""


class NotConvertedError(ConvertedFormatError):
    """The folder is not a converted checkpoint."""


class CompanionError(ConvertedFormatError):
    """A companion of a tensor is missing, or has the wrong dtype or shape."""


class OutlierIndexError(ConvertedFormatError):
    """Outlier columns are out of range, not ascending, or not shared within a group."""


class NumberError(ConvertedFormatError):
    """The format does not allow this code, row scale or padding byte."""


class LayoutError(ConvertedFormatError):
    """Payload or tensors are not aligned or adjacent as specified."""


class SourceMismatchError(ConvertedFormatError):
    """A converted folder was not made from this source, or its values are wrong."""


class ChecksumError(ConvertedFormatError):
    """Bytes do not match their checksum."""


class QualityError(Int8convError):
    """A converted linear is less exact than required."""


class UnsupportedModelError(Int8convError, NotImplementedError):
    """The runtime cannot run this model."""


class UnknownFamilyError(UnsupportedModelError):
    """The runtime does not know this ``model_type``."""


class UnsupportedFeatureError(UnsupportedModelError):
    """The config uses a feature that the runtime lacks."""


class TokenizerError(Int8convError, ValueError):
    """Tokenizer files are missing or unusable."""


class CalibrationError(Int8convError, ValueError):
    """Calibration cannot run on this input."""


class StatsError(Int8convError, ValueError):
    """A statistics file is malformed, or belongs to another checkpoint."""


class EvaluationError(Int8convError, ValueError):
    """A model cannot be evaluated on this text, or overflows on it."""


class GenerationError(Int8convError, ValueError):
    """The model cannot handle this prompt or limit."""
