"""A checkpoint as a GGUF file for llama.cpp, in Q8_0 or with the source's weights as floats; written through the package ``gguf``.

Q8_0 has a 16-bit scale for each 32 weights of a row and no outlier columns: codes of a converted folder would be rounded a second time,
so the file is made from the source.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ...errors import AlreadyQuantizedError, ArgumentError, HalfOverflowError, NonFiniteWeightError
from ...formats.outputs import beside_name, check_apart, check_name, named_output_errors
from ...formats.safetensors.dtypes import INFINITY_BITS
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.matrix import Matrix, MatrixReader, as_rows, find_matrix
from ...progress import Progress
from ...runtime.models.architecture import Architecture, Module, find_tensor
from ...runtime.opening import OpenedModel, open_model
from ..rounding.float16_bits import MAGNITUDE, round_to_half, widen
from .gguf_model import Target, find_target, frequency_factors, model_fields, row_order, tensor_name
from .gguf_vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

_BLOCK: Final = 32
_BLOCK_BYTES: Final = 34
_BLOCK_ELEMENTS: Final = 1 << 20
_Q8_0: Final = "Q8_0"
_KINDS: Final = {None: _Q8_0, "float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""Types of matrices by the name of a dtype."""
_FILES: Final = {_Q8_0: 7, "F16": 1, "BF16": 32, "F32": 0}
"""``general.file_type``: what most matrices are."""
_ITEMS: Final[dict[str, np.dtype[Any]]] = {"F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}


@dataclass(frozen=True)
class GgufReport:
    """What was written."""

    tensors: int
    linears: int
    """Matrices in the type that was asked for."""
    bytes_out: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Tensor:
    name: str
    stored: StoredTensor
    module: Module
    type: str
    """A key of ``_FILES``."""

    @property
    def is_matrix(self) -> bool:
        """Whether it has rows of a type; vectors are float32."""
        return len(self.stored.shape) == 2

    @property
    def byte_width(self) -> int | None:
        """Bytes per row of what numpy has no dtype for; None: it has one."""
        columns = self.stored.shape[-1]
        return {_Q8_0: columns // _BLOCK * _BLOCK_BYTES, "BF16": 2 * columns}.get(self.type)

    def empty(self) -> npt.NDArray[Any]:
        """Room for its rows; a vector is one column."""
        rows, *columns = self.stored.shape
        if self.byte_width is not None:
            return np.empty((rows, self.byte_width), np.uint8)
        return np.empty((rows, *(columns or (1,))), _ITEMS[self.type])


def write_gguf(
    path: str | os.PathLike[str], out: Path, progress: Progress, dtype: str | None = None
) -> GgufReport:
    """Write a checkpoint as one GGUF file, which appears complete or not at all.

    Args:
        path: the source: a checkpoint that is not quantized, or its hub id.
        out: the file to create.
        dtype: of matrices: float16, bfloat16 or float32; None: Q8_0.
        progress: called with the bytes of weights that have been read.

    Raises:
        ArgumentError: the package ``gguf`` is not installed.
        AlreadyQuantizedError: ``path`` is a converted folder.
        UnsupportedModelError: llama.cpp's names for the family are not known here, or it does not compute a feature of the config.
        TokenizerError, NotFoundError: no tokenizer that llama.cpp has.
        NonFiniteWeightError: a weight is NaN or infinite.
        HalfOverflowError: a weight does not fit the type.
        OutputError: the file cannot be written.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise ArgumentError("GGUF needs the package gguf", hint="pip install 'int8conv[gguf]'") from None  # fmt: skip
    opened = open_model(path)
    if opened.converted is not None:
        raise AlreadyQuantizedError(
            "GGUF is made from the source: int8 codes would be rounded a second time", file=opened.folder,
            hint="give the checkpoint that this folder was converted from",
        )  # fmt: skip
    check_name(out)
    check_apart(out, opened.folder)
    architecture = opened.architecture
    target = find_target(architecture, opened.folder)
    vocabulary = read_vocabulary(opened.folder, architecture.config.vocab_size)
    kind = _KINDS[dtype]
    tensors = list(_tensors(architecture, opened, kind))
    beside = beside_name(out, f".{os.getpid()}.partial")
    with named_output_errors(out):
        try:
            with contextlib.closing(gguf.GGUFWriter(beside, target.name)) as writer:
                _describe(writer, opened, target, vocabulary, kind)
                rounding = _write(writer, opened, target, tensors, progress)
            _flush(beside)
            written = beside.stat().st_size
            beside.replace(out)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
    notes = [*_notes(architecture, tensors, kind, rounding), *vocabulary.notes]
    matrices = sum(t.is_matrix and t.type == kind for t in tensors)
    return GgufReport(len(tensors), matrices, written, tuple(notes))


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _tensors(architecture: Architecture, opened: OpenedModel, kind: str) -> Iterator[_Tensor]:
    for module in architecture.modules:
        for part in ("weight", "bias") if module.bias else ("weight",):
            stored = find_tensor(opened.checkpoint, module, part)
            yield _Tensor(tensor_name(module, part), stored, module, _type(stored, kind))


def _type(stored: StoredTensor, kind: str) -> str:
    if len(stored.shape) < 2:
        return "F32"
    return "F16" if kind == _Q8_0 and stored.shape[1] % _BLOCK else kind


def _describe(
    writer: GGUFWriter, opened: OpenedModel, target: Target, vocabulary: Vocabulary, kind: str
) -> None:
    import gguf

    writer.add_name(opened.folder.name)
    writer.add_file_type(_FILES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, value in model_fields(opened.architecture.config, target):
        scaling = name == "rope_scaling_type"
        getattr(writer, f"add_{name}")(gguf.RopeScalingType(value) if scaling else value)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.space_first is not None:
        writer.add_add_space_prefix(vocabulary.space_first)
    log = logging.getLogger("gguf.vocab")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of templates for pairs of texts
    try:
        special = gguf.SpecialVocab(
            opened.folder, load_merges=vocabulary.has_merges, n_vocab=len(vocabulary.tokens)
        )
        special.add_to_gguf(writer, quiet=True)
    finally:
        log.setLevel(level)


def _write(
    writer: GGUFWriter, opened: OpenedModel, target: Target, tensors: list[_Tensor], progress: Progress
) -> float:  # fmt: skip
    """All tensors one after the other; returns the SQNR of the matrices in dB."""
    from gguf import GGMLQuantizationType

    config = opened.architecture.config
    assert config.rope is not None
    factors = frequency_factors(config.rope, config.head_dim)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for tensor in tensors:
        shape, width = tensor.stored.shape, tensor.byte_width
        if width is not None:
            writer.add_tensor_info(
                tensor.name, (shape[0], width), np.dtype(np.uint8), shape[0] * width, GGMLQuantizationType[tensor.type]
            )  # fmt: skip
        else:
            dtype = _ITEMS[tensor.type]
            writer.add_tensor_info(tensor.name, shape, dtype, prod(shape) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    total, done = sum(tensor.stored.nbytes for tensor in tensors), 0
    power = np.zeros(2)
    for tensor in tensors:
        data, powers = _data(opened, tensor, target)
        writer.write_tensor_data(data)
        power += powers
        done += tensor.stored.nbytes
        progress("writing", done, total)
    return float(10 * np.log10(power[0] / power[1])) if power.all() else float("inf")


def _data(
    opened: OpenedModel, tensor: _Tensor, target: Target
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """A tensor as it stands in the file, and the powers of its values and of their rounding errors; a vector is not rounded."""
    config = opened.architecture.config
    out, power = tensor.empty(), np.zeros(2)
    offset = config.norm_offset if tensor.module.kind == "norm" else 0.0
    for first, values in _values(opened, tensor):
        here = slice(first, first + len(values))
        if not tensor.is_matrix:
            out[here] = values + np.float32(offset)
            continue
        out[here], error = _rounded(values, tensor)
        power += np.square(values, dtype=np.float64).sum(), np.square(error, dtype=np.float64).sum()
    source = row_order(tensor.module, config, target)
    if source is not None:
        out = out[[source(row) for row in range(len(out))]]
    return (out if tensor.is_matrix else out[:, 0]), power


def _rounded(
    values: npt.NDArray[np.float32], tensor: _Tensor
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Rows in the type of a matrix, and their rounding errors."""
    from gguf import GGMLQuantizationType, quants

    if tensor.type == "F32":
        return values, np.zeros_like(values)
    if tensor.type == _Q8_0:
        found = quants.quantize(values, GGMLQuantizationType.Q8_0)
        return found, quants.dequantize(found, GGMLQuantizationType.Q8_0) - values
    bits, _ = round_to_half(values, tensor.type)
    if (bits & MAGNITUDE[tensor.type] >= INFINITY_BITS[tensor.type]).any():
        raise HalfOverflowError(f"a weight does not fit {tensor.type}", file=tensor.stored.file, tensor=tensor.stored.name)  # fmt: skip
    error = widen(bits, tensor.type, np.empty(bits.shape, np.float32)) - values
    return bits.view(np.float16) if tensor.type == "F16" else bits.view(np.uint8), error


def _values(opened: OpenedModel, tensor: _Tensor) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """float32 ``[rows, columns]`` from each first row on; a vector is one column."""
    stored = tensor.stored
    whole: Matrix
    if len(stored.shape) == 2:
        whole = find_matrix(opened.checkpoint, stored)
    else:
        whole = as_rows(stored, _BLOCK_ELEMENTS)
    for first, bits in MatrixReader(whole, _BLOCK_ELEMENTS).blocks():
        if (bits & MAGNITUDE[whole.dtype] >= INFINITY_BITS[whole.dtype]).any():
            raise NonFiniteWeightError("NaN or infinity", file=stored.file, tensor=stored.name, expected="finite weights")  # fmt: skip
        values = widen(bits, whole.dtype, np.empty(bits.shape, np.float32))
        yield first, values if len(stored.shape) == 2 else values.reshape(-1, 1)


def _notes(
    architecture: Architecture, tensors: list[_Tensor], kind: str, sqnr: float
) -> Iterator[str]:
    if kind == _Q8_0:
        yield f"Q8_0 rounds embeddings and the head too, and has no outlier columns: SQNR of the weights {sqnr:.1f} dB"
    elif np.isfinite(sqnr):
        yield f"{kind} rounds the source's weights: SQNR {sqnr:.1f} dB"
    if odd := [tensor.name for tensor in tensors if tensor.is_matrix and tensor.type != kind]:
        yield f"{len(odd)} matrices whose rows are no multiple of {_BLOCK} long are in float16, the first is {odd[0]}"
    config = architecture.config
    if any(config.windows) and architecture.family.model_type == "mistral":
        yield f"llama.cpp attends to all positions, not to the last {max(w or 0 for w in config.windows)} only"
    yield from architecture.notes
