"""Workspaces: shared within a stream, never between a captured step and anything else, never made within a capture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from int8conv.kernels.gpu import workspace
from int8conv.kernels.gpu.workspace import Workspace, take, use

CPU = torch.device("cpu")
META = torch.device("meta")


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Whether the stream pretends to."""
    state = SimpleNamespace(now=False)
    monkeypatch.setattr(workspace, "is_capturing", lambda device: state.now)
    return state


def test_launches_of_a_stream_share_one_that_grows() -> None:
    first = take(CPU, 10, 10)
    assert all(a is b for a, b in zip(take(CPU, 20, 20), first, strict=True))
    sums, counters = take(CPU, len(first[0]) + 1, 1)
    assert len(sums) > len(first[0])
    assert (counters == 0).all()
    assert counters.dtype == torch.int32


def test_a_captured_step_has_its_own() -> None:
    outside = take(CPU, 10, 10)
    own = [Workspace(), Workspace()]
    taken = []
    for each in own:
        with use(each):
            taken.append(take(CPU, 10, 10))
            assert take(CPU, 10, 10)[1] is each.counters
    addresses = {pair[1].data_ptr() for pair in (outside, *taken)}
    assert len(addresses) == 3
    assert take(CPU, 10, 10)[1] is outside[1]


def test_nothing_is_allocated_within_a_capture(capturing: SimpleNamespace) -> None:
    own = Workspace()
    with use(own):
        before = take(CPU, 10, 10)
        capturing.now = True
        assert take(CPU, 10, 10)[0] is before[0]
        with pytest.raises(RuntimeError, match="before the capture"):
            take(CPU, len(before[0]) + 1, 10)
        assert own.sums is before[0]
    with pytest.raises(RuntimeError, match="a workspace of its own"):
        take(CPU, 10, 10)


def test_a_failed_use_leaves_the_others() -> None:
    outside = take(CPU, 10, 10)
    with pytest.raises(KeyError), use(Workspace()):
        raise KeyError
    assert take(CPU, 10, 10)[1] is outside[1]
