"""Re-read every byte of a converted folder against its checksums and the numeric rules of SPEC.md."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from ...errors import ChecksumError, NotFoundError, NumberError
from ...progress import Advance, Progress, counted, silent
from ..safetensors.checksum import checksum_range, read_blocks, running_checksum
from ..safetensors.dtypes import INFINITY_BITS, ITEM_BYTES
from ..safetensors.stored import read_array, read_rows
from ..source.checkpoint import CONFIG_FILE, INDEX_FILE, Checkpoint
from .folder import FolderLike, QuantizedLinear, open_folder
from .manifest import FileRecord
from .names import MANIFEST_FILE, SMALLEST_SCALE, is_padding

BLOCK_CODES: Final = 1 << 20
"""Number of codes checked at a time."""


def verify(path: FolderLike, *, progress: Progress = silent) -> int:
    """Re-read every byte of a converted folder against its checksums and the numeric rules of the format.

    Args:
        path: the folder, its hub id, or an opened folder.
        progress: called with the number of tensor bytes read.

    Returns:
        The number of bytes in all files.

    Raises:
        ChecksumError: a file, header or tensor does not match its checksum, or has none.
        NumberError: a code is -128, or nonzero in an outlier column or a row with scale 0; a scale is invalid; a value is NaN
            or infinite; padding is not zero.
        NotFoundError: a file listed in the manifest is missing.
        HubError, CheckpointError, SafetensorsError, ConvertedFormatError: the folder cannot be opened.
    """
    converted = open_folder(path)
    advance = counted(progress, "verify", converted.checkpoint.nbytes)
    total = 0
    for name in (CONFIG_FILE, INDEX_FILE):
        if name not in converted.manifest.files:
            raise ChecksumError("no checksum in the manifest", file=converted.folder / name)
    for name, record in converted.manifest.files.items():
        path = converted.folder / name
        if not path.is_file():
            raise NotFoundError(f"a file listed in {MANIFEST_FILE} is missing", file=path)
        size = path.stat().st_size
        if size != record.bytes:
            raise ChecksumError("size differs from the manifest", file=path,
                                expected=f"{record.bytes} bytes", found=f"{size}")  # fmt: skip
        _compare(checksum_range(path, 0, record.header_bytes), record.xxh3_128, path)
        if record.tensors is not None:
            _verify_shard(converted.checkpoint, path, record, advance)
        total += size
    for linear in converted.linears.values():
        verify_linear(linear)
    return total


def _verify_shard(checkpoint: Checkpoint, path: Path, record: FileRecord, advance: Advance) -> None:
    header = checkpoint.headers[path.name]
    assert record.tensors is not None
    if record.header_bytes != header.payload_offset:
        raise ChecksumError("the checksum does not cover exactly the header", file=path,
                            expected=f"{header.payload_offset} bytes", found=record.header_bytes)  # fmt: skip
    for info in header.tensors.values():
        offset = header.payload_offset + info.begin
        if is_padding(info.name):
            if any(
                block.tobytes().strip(b"\0") for block in read_blocks(path, offset, info.nbytes)
            ):
                raise NumberError("padding is not zero", file=path, tensor=info.name)
        else:
            running, finite = running_checksum(), True
            for block in read_blocks(path, offset, info.nbytes):
                running.update(block)
                finite = finite and _is_finite(block, info.dtype)
                advance(len(block))
            _compare(running.hexdigest(), record.tensors.get(info.name), path, info.name)
            if not finite:
                raise NumberError("a value is NaN or infinite", file=path, tensor=info.name)


def _is_finite(block: memoryview, dtype: str) -> bool:
    """Checked on bits, as numpy is slow with 16-bit floats; True for dtypes that are not floats of the format."""
    if (
        dtype not in INFINITY_BITS or len(block) % ITEM_BYTES[dtype]
    ):  # truncated: the checksum will differ
        return True
    bits = np.frombuffer(block, "<u4" if dtype == "F32" else "<u2")
    exponent = bits.dtype.type(INFINITY_BITS[dtype])
    return not bool(((bits & exponent) == exponent).any())


def _compare(found: str, expected: str | None, path: Path, tensor: str | None = None) -> None:
    if expected is None:
        raise ChecksumError("no checksum in the manifest", file=path, tensor=tensor)
    if found != expected:
        raise ChecksumError(
            "bytes differ from their checksum", file=path, tensor=tensor,
            expected=expected, found=found, hint="the file is damaged: copy or convert it again",
        )  # fmt: skip


def verify_linear(linear: QuantizedLinear) -> None:
    """Check codes and scales against the numeric rules, a block of rows at a time."""
    scale = read_array(linear.scale)
    positive = np.isfinite(scale) & (scale >= SMALLEST_SCALE)
    allowed = positive | ((scale == 0) & ~np.signbit(scale))
    if not allowed.all():
        raise NumberError(
            "a row scale is not one that the format allows", file=linear.scale.file, tensor=linear.scale.name,
            expected="0, or at least 2^-126 and finite", found=scale[~allowed][0],
        )  # fmt: skip
    columns = read_array(linear.outlier_index) if linear.outlier_index else None
    rows = max(1, BLOCK_CODES // max(linear.in_features, 1))
    for first in range(0, linear.out_features, rows):
        last = min(first + rows, linear.out_features)
        codes = read_rows(linear.weight, first, last).squeeze(-1)
        if (codes == -128).any():
            raise NumberError("a code is -128", file=linear.weight.file,
                                       tensor=linear.weight.name, expected="-127..127")  # fmt: skip
        if columns is not None and codes[:, columns].any():
            raise NumberError("a code in an outlier column is not 0",
                                       file=linear.weight.file, tensor=linear.weight.name)  # fmt: skip
        if codes[scale[first:last] == 0].any():
            raise NumberError("a code in a row with scale 0 is not 0", file=linear.weight.file,
                              tensor=linear.weight.name)  # fmt: skip
