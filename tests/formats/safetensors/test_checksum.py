"""XXH3-128 as the manifest writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from int8conv.formats.safetensors.checksum import (
    checksum,
    checksum_range,
    read_blocks,
    running_checksum,
)

DATA = bytes(i * 7 % 251 for i in range((1 << 20) + 12345))


def test_known_values() -> None:
    """Those of the XXH3 reference: seed 0, canonical order."""
    assert checksum(b"") == "99aa06d3014798d86001c324468d497f"
    assert checksum(b"int8conv") == "d4394bab2e573fc4a04dfbeb9bca6460"


@pytest.mark.parametrize("offset", [0, 1, 4096, len(DATA) - 1, len(DATA)])
@pytest.mark.parametrize("nbytes", [None, 0, 1, 1 << 20, (1 << 20) + 1])
def test_a_range_of_a_file_is_its_bytes(tmp_path: Path, offset: int, nbytes: int | None) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    part = DATA[offset:] if nbytes is None else DATA[offset : offset + nbytes]
    assert checksum_range(path, offset, nbytes) == checksum(part)
    assert b"".join(map(bytes, read_blocks(path, offset, nbytes))) == part


def test_a_running_checksum_is_that_of_the_whole() -> None:
    running = running_checksum()
    for start in range(0, len(DATA), 99_991):
        running.update(DATA[start : start + 99_991])
    assert running.hexdigest() == checksum(DATA)
