"""XXH3-128 checksums as the format records them: 32 hexadecimal digits, canonical order."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

_BLOCK_BYTES = 1 << 20


def checksum(data: bytes | memoryview) -> str:
    """Checksum of bytes in memory."""
    return xxhash.xxh3_128_hexdigest(data)


def running_checksum() -> xxhash.xxh3_128:
    """An incremental checksum: feed it with ``update``, read it with ``hexdigest``."""
    return xxhash.xxh3_128()


def read_blocks(path: Path, offset: int = 0, nbytes: int | None = None) -> Iterator[memoryview]:
    """Blocks of 1 MiB of a range of a file, in one buffer (each valid until the next); up to the end if ``nbytes`` is None.

    Only the last block is shorter, so that no block ends within an element unless the file is truncated.
    """
    with path.open("rb", buffering=0) as file:
        left = os.fstat(file.fileno()).st_size - offset if nbytes is None else nbytes
        file.seek(offset)
        buffer = memoryview(bytearray(min(_BLOCK_BYTES, max(left, 1))))
        while left > 0 and (count := _fill(file, buffer[: min(left, len(buffer))])):
            left -= count
            yield buffer[:count]


def _fill(file: io.FileIO, buffer: memoryview) -> int:
    """Fill a buffer; returns the number of bytes, which is smaller than the buffer only at the end of the file."""
    done = 0
    while done < len(buffer) and (count := file.readinto(buffer[done:])):
        done += count
    return done


def checksum_range(path: Path, offset: int = 0, nbytes: int | None = None) -> str:
    """Checksum of a range of a file, read block by block."""
    running = running_checksum()
    for block in read_blocks(path, offset, nbytes):
        running.update(block)
    return running.hexdigest()


def checksum_at(fd: int, offset: int, nbytes: int) -> str:
    """Checksum of a range of an open file, as far as the file extends."""
    running = running_checksum()
    buffer = memoryview(bytearray(min(_BLOCK_BYTES, max(nbytes, 1))))
    while nbytes > 0 and (count := os.preadv(fd, [buffer[: min(nbytes, len(buffer))]], offset)):
        running.update(buffer[:count])
        offset, nbytes = offset + count, nbytes - count
    return running.hexdigest()
