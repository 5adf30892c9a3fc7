"""A cache for which there is no memory is one line, with what it would take."""

from __future__ import annotations

import pytest

from int8conv.errors import GenerationError
from int8conv.runtime.generate import room as module
from int8conv.runtime.generate.room import room
from int8conv.runtime.measure.footprint import Footprint

PREDICTED = Footprint(100, 3, "cpu", "float32", "float32", {"int8": 10**9}, False, 5 * 10**9, 10**9, 0, 0, 0)  # fmt: skip
LINE = (
    "no memory for a cache of 3 x 100 positions: expected at most the 4.0 GB that are free, found 5.0 GB, 7.0 GB with weights and "
    "activations (fewer new tokens or prompts, or kv_cache int8)"
)


@pytest.mark.parametrize(("free", "on_host", "enough"), [(4 * 10**9, True, False), (4 * 10**9, False, True), (5 * 10**9, True, True), (None, True, True)])  # fmt: skip
def test_before_it_is_taken(
    free: int | None, on_host: bool, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: free)
    taken = False
    try:
        with room(lambda: PREDICTED, on_host=on_host):
            taken = True
    except GenerationError as error:
        assert str(error) == LINE
    assert taken == enough


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])  # fmt: skip
def test_when_it_cannot_be(error: Exception) -> None:
    line = r"no memory for a cache of 3 x 100 positions: found 5.0 GB"
    with pytest.raises(GenerationError, match=line), room(lambda: PREDICTED, on_host=False):
        raise error
