"""Every error that a user can cause, in one tree; in brackets the built-in class that an error is as well.

    Int8convError
    |- NotFoundError (FileNotFoundError)            A path does not exist or cannot be read, or there is no checkpoint in it
    |- ArgumentError (ValueError)                   An option or argument has a value that cannot be used
    |- HubError (OSError)                           A checkpoint cannot be fetched from the hub
    |  |- HubNotFoundError (FileNotFoundError)      There is no such repository, revision or file on the hub
    |  |- HubAccessError (PermissionError)          The repository is private, gated or disabled, and not open to this user
    |  |- HubUnavailableError (ConnectionError)     The hub cannot be reached, fails, or refuses so many requests
    |  `- HubChangedError                           A file on the hub changed while it was read
    |- OutputError (OSError)                        The output cannot be written
    |  |- OutputExistsError (FileExistsError)       The output exists already; it is never touched without force
    |  |- OutputOverlapError                        The output is the source, holds it, or lies inside a file of it
    |  |- OutputBusyError                           Another process is writing the output
    |  |- NotWritableError (PermissionError)        The output, or the folder that should hold it, cannot be written to
    |  `- NoSpaceError                              The disk is full
    |- SafetensorsError (ValueError)                A file breaks the safetensors format
    |  |- TruncatedFileError                        The file ends before its header or payload does
    |  |- HeaderTooLongError                        The header is longer than the format allows
    |  |- HeaderSyntaxError                         The header is not the JSON that the format asks for
    |  |- UnsupportedDtypeError                     A tensor has a dtype that is unknown, or that cannot be used here
    |  |- ByteCountError                            Shape times item size is not the number of bytes that the offsets span
    |  `- OffsetError                               Tensors overlap, leave holes, or pass the payload's end
    |- CheckpointError (ValueError)                 A checkpoint folder is inconsistent
    |  |- PointerFileError                          A Git LFS pointer stands in place of a file
    |  |- AdapterError                              The weights are those of an adapter (LoRA and the like), not of a model
    |  |- WrappedNamesError                         Tensor names have the prefix of a wrapper that training put around the model
    |  |- PickleFileError                           A PyTorch pickle cannot be read safely, or holds something other than named tensors
    |  |- JsonFileError                             A config, index or manifest is not the JSON that is expected
    |  |- UnsafePathError                           The index names a file outside the folder
    |  |- FileChangedError                          A file was replaced or overwritten while it was in use
    |  |- MissingShardError (FileNotFoundError)     A file that the index names is missing
    |  |- DuplicateTensorError                      Two files have a tensor of the same name
    |  |- MissingTensorError                        A tensor that is listed or needed is missing
    |  |- ShapeError                                A tensor's shape is not what the config implies
    |  |- AlreadyQuantizedError                     The source is quantized already
    |  |- NonFiniteWeightError                      A weight is NaN or infinite
    |  `- HalfOverflowError                         A 32-bit weight does not fit the 16-bit type asked for
    |- ConvertedFormatError (ValueError)            A converted folder breaks the format's specification (formats/SPEC.md)
    |  |- UnknownVersionError                       The format version is not one that this release reads
    |  |- NotConvertedError                         The folder is not a converted one
    |  |- CompanionError                            A tensor lacks its companions, or one has the wrong dtype or shape
    |  |- OutlierIndexError                         Outlier columns are out of range, not ascending, or not shared within a group
    |  |- NumberError                               A code, row scale or padding byte is not one that the format allows
    |  |- LayoutError                               Payload or tensors are not aligned or adjacent as the specification asks
    |  |- SourceMismatchError                       A converted folder was not made from this source, or holds other values than it should
    |  `- ChecksumError                             Bytes differ from their checksum
    |- QualityError                                 A converted linear is less exact than was asked for
    |- UnsupportedModelError (NotImplementedError)  The runtime cannot run this model
    |  |- UnknownFamilyError                        The runtime does not know this model_type
    |  `- UnsupportedFeatureError                   The config asks for a feature that the runtime does not have
    |- TokenizerError (ValueError)                  Tokenizer files are missing or unusable
    |- CalibrationError (ValueError)                Calibration cannot run on this input
    |- StatsError (ValueError)                      A statistics file is malformed, or belongs to another checkpoint
    |- EvaluationError (ValueError)                 A model cannot be evaluated on this text, or overflows on it
    `- GenerationError (ValueError)                 A prompt or a limit that the model cannot take

This module imports nothing of the package, so that every room may import it.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar, Final


class Int8convError(Exception):
    """Base of all errors of this package; its text is one line fit for a user.

    Those that are an ``OSError`` too have its ``errno`` (None where none fits), ``strerror`` and ``filename``.

    Args:
        problem: what is wrong, a phrase without a final stop.
        file: path of the offending file or folder.
        tensor: name of the offending tensor.
        expected: what should have been there.
        found: what was there instead.
        hint: what the user can do.
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
        """The same error, of a tensor that whoever raised it did not know."""
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
    """For pickling, which would call the class with the whole line."""
    return kind(**parts)


def printable(text: str) -> str:
    """Text from a file, fit for a terminal: what moves the cursor, turns the direction of writing, is invisible or is no character
    becomes an escape such as ``\\x1b``.

    Errors are made with it, and all that the command line prints (``cli/output.py``).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shortened(value: object, most: int = 400) -> str:
    """A value as a message shows it: a malformed file may hold very long ones."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}..."


class NotFoundError(Int8convError, FileNotFoundError):
    """A path does not exist or cannot be read, or there is no checkpoint in it."""

    _errno = errno.ENOENT


class ArgumentError(Int8convError, ValueError):
    """An option or argument has a value that cannot be used."""


class HubError(Int8convError, OSError):
    """A checkpoint cannot be fetched from the hub."""


class HubNotFoundError(HubError, FileNotFoundError):
    """There is no such repository, revision or file on the hub."""

    _errno = errno.ENOENT


class HubAccessError(HubError, PermissionError):
    """The repository is private, gated or disabled, and not open to this user."""

    _errno = errno.EACCES


class HubUnavailableError(HubError, ConnectionError):
    """The hub cannot be reached, fails, or refuses so many requests."""


class HubChangedError(HubError):
    """A file on the hub changed while it was read."""


class OutputError(Int8convError, OSError):
    """The output cannot be written."""


class OutputExistsError(OutputError, FileExistsError):
    """The output exists already; it is never touched without ``force``."""

    _errno = errno.EEXIST


class OutputOverlapError(OutputError):
    """The output is the source, holds it, or lies inside a file of it."""


class OutputBusyError(OutputError):
    """Another process is writing the output."""


class NotWritableError(OutputError, PermissionError):
    """The output, or the folder that should hold it, cannot be written to."""

    _errno = errno.EACCES


class NoSpaceError(OutputError):
    """The disk is full."""

    _errno = errno.ENOSPC


class SafetensorsError(Int8convError, ValueError):
    """A file breaks the safetensors format."""


class TruncatedFileError(SafetensorsError):
    """The file ends before its header or payload does."""


class HeaderTooLongError(SafetensorsError):
    """The header is longer than the format allows."""


class HeaderSyntaxError(SafetensorsError):
    """The header is not the JSON that the format asks for."""


class UnsupportedDtypeError(SafetensorsError):
    """A tensor has a dtype that is unknown, or that cannot be used here."""


class ByteCountError(SafetensorsError):
    """Shape times item size is not the number of bytes that the offsets span."""


class OffsetError(SafetensorsError):
    """Tensors overlap, leave holes, or pass the payload's end."""


class CheckpointError(Int8convError, ValueError):
    """A checkpoint folder is inconsistent."""


class PointerFileError(CheckpointError):
    """A Git LFS pointer stands in place of a file."""


class AdapterError(CheckpointError):
    """The weights are those of an adapter (LoRA and the like), not of a model."""


class WrappedNamesError(CheckpointError):
    """Tensor names have the prefix of a wrapper that training put around the model."""


class PickleFileError(CheckpointError):
    """A PyTorch pickle cannot be read safely, or holds something other than named tensors."""


class JsonFileError(CheckpointError):
    """A config, index or manifest is not the JSON that is expected."""


class UnsafePathError(CheckpointError):
    """The index names a file outside the folder."""


class FileChangedError(CheckpointError):
    """A file was replaced or overwritten while it was in use."""


class MissingShardError(CheckpointError, FileNotFoundError):
    """A file that the index names is missing."""

    _errno = errno.ENOENT


class DuplicateTensorError(CheckpointError):
    """Two files have a tensor of the same name."""


class MissingTensorError(CheckpointError):
    """A tensor that is listed or needed is missing."""


class ShapeError(CheckpointError):
    """A tensor's shape is not what the config implies."""


class AlreadyQuantizedError(CheckpointError):
    """The source is quantized already."""


class NonFiniteWeightError(CheckpointError):
    """A weight is NaN or infinite."""


class HalfOverflowError(CheckpointError):
    """A 32-bit weight does not fit the 16-bit type asked for."""


class ConvertedFormatError(Int8convError, ValueError):
    """A converted folder breaks the format's specification (``formats/SPEC.md``)."""


class UnknownVersionError(ConvertedFormatError):
    """The format version is not one that this release reads."""


class NotConvertedError(ConvertedFormatError):
    """The folder is not a converted one."""


class CompanionError(ConvertedFormatError):
    """A tensor lacks its companions, or one has the wrong dtype or shape."""


class OutlierIndexError(ConvertedFormatError):
    """Outlier columns are out of range, not ascending, or not shared within a group."""


class NumberError(ConvertedFormatError):
    """A code, row scale or padding byte is not one that the format allows."""


class LayoutError(ConvertedFormatError):
    """Payload or tensors are not aligned or adjacent as the specification asks."""


class SourceMismatchError(ConvertedFormatError):
    """A converted folder was not made from this source, or holds other values than it should."""


class ChecksumError(ConvertedFormatError):
    """Bytes differ from their checksum."""


class QualityError(Int8convError):
    """A converted linear is less exact than was asked for."""


class UnsupportedModelError(Int8convError, NotImplementedError):
    """The runtime cannot run this model."""


class UnknownFamilyError(UnsupportedModelError):
    """The runtime does not know this ``model_type``."""


class UnsupportedFeatureError(UnsupportedModelError):
    """The config asks for a feature that the runtime does not have."""


class TokenizerError(Int8convError, ValueError):
    """Tokenizer files are missing or unusable."""


class CalibrationError(Int8convError, ValueError):
    """Calibration cannot run on this input."""


class StatsError(Int8convError, ValueError):
    """A statistics file is malformed, or belongs to another checkpoint."""


class EvaluationError(Int8convError, ValueError):
    """A model cannot be evaluated on this text, or overflows on it."""


class GenerationError(Int8convError, ValueError):
    """A prompt or a limit that the model cannot take."""
