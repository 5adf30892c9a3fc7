"""The garbage collector is held within a block, and as it was behind it."""

from __future__ import annotations

import gc

import pytest

from int8conv.formats.safetensors.collection import collection_paused


def test_it_pauses_and_goes_on() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError), collection_paused():
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()  # the inner block found it so
        raise KeyError
    assert gc.isenabled()


def test_as_a_decorator() -> None:
    @collection_paused()
    def enabled() -> bool:
        return gc.isenabled()

    assert [enabled(), enabled()] == [False, False]
    assert gc.isenabled()
