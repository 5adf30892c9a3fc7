"""Every error that a user can cause, in one tree.

    Int8convError
    |- NotFoundError                 a path, or the checkpoint in it, does not exist
    |- ArgumentError                 an option or argument has a value that cannot be used
    |- HubError                      a checkpoint cannot be had from the hub
    |  |- HubNotFoundError           no such repository, revision or file
    |  |- HubAccessError             it is not open to this user
    |  |- HubUnavailableError        the hub cannot be reached, fails, or refuses so many requests
    |  `- HubChangedError            a file on the hub changed while it was read
    |- OutputError                   the output cannot be written
    |  |- OutputExistsError          it is there already (never touched without force)
    |  |- OutputOverlapError        it is the source, holds it, or lies inside a file of it
    |  |- OutputBusyError           another process is writing it
    |  |- NotWritableError           its folder cannot be written to
    |  `- NoSpaceError               the disk is full
    |- SafetensorsError              one file breaks the safetensors format
    |  |- TruncatedFileError         it ends before its header or payload does
    |  |- HeaderTooLongError         its header length passes the limit
    |  |- HeaderSyntaxError          its header is not the JSON that the format asks for
    |  |- UnsupportedDtypeError      a tensor has a dtype that cannot be used here
    |  |- ByteCountError             shape times item size is not the number of bytes
    |  `- OffsetError                tensors overlap, leave holes, or pass the payload's end
    |- CheckpointError               a checkpoint folder does not hold together
    |  |- PickleFileError           a PyTorch pickle cannot be read safely
    |  |- JsonFileError              config, index or manifest is not the JSON that is expected
    |  |- UnsafePathError            the index names a file outside the folder
    |  |- FileChangedError           a file changed while it was in use
    |  |- MissingShardError          a file that the index names is absent
    |  |- MissingTensorError         a tensor that is listed or needed is absent
    |  |- ShapeError                 a tensor's shape is not what the config implies
    |  |- AlreadyQuantizedError      the source is quantized already
    |  |- NonFiniteWeightError       a weight is NaN or infinite
    |  `- HalfOverflowError          a 32-bit weight does not fit the 16-bit type asked for
    |- ConvertedFormatError          a converted folder breaks SPEC.md
    |  |- UnknownVersionError        its format version is not one that this release reads
    |  |- NotConvertedError          it is not a converted folder at all
    |  |- CompanionError             a tensor stands without its companions, or with the wrong kind
    |  |- OutlierIndexError          outlier columns out of range, not ascending, or not shared by a group
    |  |- NumberError                a code, row scale or padding byte is not one that the format allows
    |  |- LayoutError                payload or tensors are not aligned or adjacent as the spec asks
    |  |- SourceMismatchError        a folder was not converted from this source
    |  `- ChecksumError              bytes differ from their checksum
    |- QualityError                  a converted linear is less exact than was asked for
    |- UnsupportedModelError         the runtime does not know this model
    |  |- UnknownFamilyError         its model_type
    |  `- UnsupportedFeatureError    a feature that its config asks for
    |- TokenizerError                tokenizer files are absent or unusable
    |- CalibrationError              calibration cannot run on this input
    |- StatsError                    a statistics file is malformed, or of another checkpoint
    |- EvaluationError               a text that a model cannot be evaluated on, or a model that overflows on it
    `- GenerationError               a prompt or a limit that the model cannot take

This module imports nothing, so that every room may import it.
"""

from __future__ import annotations


class Int8convError(Exception):
    """Base of all errors of this package; its text is one line fit for a user.

    Args:
        problem: what is wrong, a phrase without a final stop.
        file: path of the offending file or folder.
        tensor: name of the offending tensor.
        expected: what should have been there.
        found: what was there instead.
        hint: what the user can do.
    """

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

    def about(self, tensor: str) -> Int8convError:
        """The same error, of a tensor that whoever raised it did not know."""
        return type(self)(
            self.problem, file=self.file, tensor=self.tensor or tensor, expected=self.expected,
            found=self.found, hint=self.hint,
        )  # fmt: skip

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


class NotFoundError(Int8convError):
    """A path, or the checkpoint in it, does not exist."""


class ArgumentError(Int8convError):
    """An option or argument has a value that cannot be used."""


class HubError(Int8convError):
    """A checkpoint cannot be had from the hub."""


class HubNotFoundError(HubError):
    """No such repository, revision or file on the hub."""


class HubAccessError(HubError):
    """The repository is private, gated or disabled, and not open to this user."""


class HubUnavailableError(HubError):
    """The hub cannot be reached, fails, or refuses so many requests."""


class HubChangedError(HubError):
    """A file on the hub changed while it was read."""


class OutputError(Int8convError):
    """The output cannot be written."""


class OutputExistsError(OutputError):
    """The output is there already; it is never touched without ``force``."""


class OutputOverlapError(OutputError):
    """The output is the source, holds it, or lies inside a file of it."""


class OutputBusyError(OutputError):
    """Another process is writing the output."""


class NotWritableError(OutputError):
    """The folder that should hold the output cannot be written to."""


class NoSpaceError(OutputError):
    """The disk is full."""


class SafetensorsError(Int8convError):
    """One file breaks the safetensors format."""


class TruncatedFileError(SafetensorsError):
    """The file ends before its header or payload does."""


class HeaderTooLongError(SafetensorsError):
    """The header length passes the format's limit."""


class HeaderSyntaxError(SafetensorsError):
    """The header is not the JSON that the format asks for."""


class UnsupportedDtypeError(SafetensorsError):
    """A tensor has a dtype that is unknown, or that cannot be used here."""


class ByteCountError(SafetensorsError):
    """Shape times item size is not the number of bytes that the offsets span."""


class OffsetError(SafetensorsError):
    """Tensors overlap, leave holes, or pass the payload's end."""


class CheckpointError(Int8convError):
    """A checkpoint folder does not hold together."""


class PickleFileError(CheckpointError):
    """A PyTorch pickle cannot be read safely, or holds something else than tensors by name."""


class JsonFileError(CheckpointError):
    """Config, index or manifest is not the JSON that is expected."""


class UnsafePathError(CheckpointError):
    """The index names a file outside the folder."""


class FileChangedError(CheckpointError):
    """A file was replaced or overwritten while it was in use."""


class MissingShardError(CheckpointError):
    """A file that the index names is absent."""


class DuplicateTensorError(CheckpointError):
    """Two files have a tensor of the same name."""


class MissingTensorError(CheckpointError):
    """A tensor that is listed or needed is absent."""


class ShapeError(CheckpointError):
    """A tensor's shape is not what the config implies."""


class AlreadyQuantizedError(CheckpointError):
    """The source is quantized already."""


class NonFiniteWeightError(CheckpointError):
    """A weight is NaN or infinite."""


class HalfOverflowError(CheckpointError):
    """A 32-bit weight does not fit the 16-bit type asked for."""


class ConvertedFormatError(Int8convError):
    """A converted folder breaks the format's specification (``formats/SPEC.md``)."""


class UnknownVersionError(ConvertedFormatError):
    """The format version is not one that this release reads."""


class NotConvertedError(ConvertedFormatError):
    """The folder is not a converted one."""


class CompanionError(ConvertedFormatError):
    """A tensor stands without its companions, or one has the wrong dtype or shape."""


class OutlierIndexError(ConvertedFormatError):
    """Outlier columns out of range, not ascending, or not shared within a group."""


class NumberError(ConvertedFormatError):
    """A code, row scale or padding byte is not one that the format allows."""


class LayoutError(ConvertedFormatError):
    """Payload or tensors are not aligned or adjacent as the spec asks."""


class SourceMismatchError(ConvertedFormatError):
    """A converted folder was not converted from this source, or holds other values than it should."""


class ChecksumError(ConvertedFormatError):
    """Bytes differ from their checksum."""


class QualityError(Int8convError):
    """A converted linear is less exact than was asked for."""


class UnsupportedModelError(Int8convError):
    """The runtime does not know this model."""


class UnknownFamilyError(UnsupportedModelError):
    """The runtime does not know this ``model_type``."""


class UnsupportedFeatureError(UnsupportedModelError):
    """The config asks for a feature that the runtime does not have."""


class TokenizerError(Int8convError):
    """Tokenizer files are absent or unusable."""


class CalibrationError(Int8convError):
    """Calibration cannot run on this input."""


class StatsError(Int8convError):
    """A statistics file is malformed, or of another checkpoint."""


class EvaluationError(Int8convError):
    """A text that a model cannot be evaluated on, or a model that overflows on it."""


class GenerationError(Int8convError):
    """A prompt or a limit that the model cannot take."""
