"""States of recurrent layers: views of one memory, zero before the first token, and the convolution's formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from int8conv.runtime.decoder.recurrent.states import State
from int8conv.runtime.models.recurrence import Delta

DELTA = Delta(key_heads=1, value_heads=2, key_size=3, value_size=4, kernel=4)
G = torch.Generator().manual_seed(6)


def filled(batch: int) -> State:
    state = State.empty(DELTA, batch)
    state.matrix.normal_(generator=G)
    state.past.normal_(generator=G)
    return state


def test_a_sequence_is_a_part_of_the_same_memory() -> None:
    state = filled(3)
    state.between(1, 2).matrix.fill_(7)
    assert (state.matrix[1] == 7).all()
    assert not (state.matrix[[0, 2]] == 7).any()
    assert state.nbytes == 4 * (3 * 2 * 3 * 4 + 3 * 14 * 3) == DELTA.nbytes(3)


def test_at_length_0_it_is_zero() -> None:
    state = filled(3)
    before = state.matrix.clone()
    state.at(torch.tensor([4, 0, 1]))
    assert not state.matrix[1].any()
    assert not state.past[1].any()
    assert torch.equal(state.matrix[[0, 2]], before[[0, 2]])


def test_every_sequence_gets_that_of_one() -> None:
    state, single = filled(3), filled(1)
    state.fill_from(single)
    assert torch.equal(state.matrix, single.matrix.expand(3, -1, -1, -1))
    assert torch.equal(state.past, single.past.expand(3, -1, -1))


def test_the_convolution_continues_over_calls() -> None:
    """In parts of 5, 1, 1 and 2 tokens as in one, and as its formula says; fewer tokens than its kernel keep older ones."""
    x, weight = torch.randn(2, 9, 14, generator=G), torch.randn(14, 1, 4, generator=G)
    padded = F.pad(x, (0, 0, 3, 0))
    expected = torch.stack([F.silu((padded[:, t : t + 4] * weight[:, 0].t()).sum(1)) for t in range(9)], 1)  # fmt: skip
    state = State.empty(DELTA, 2)
    found = torch.cat([state.convolved(part, weight) for part in x.split([5, 1, 1, 2], dim=1)], 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(state.past, x[:, -3:].transpose(1, 2))


def test_two_sequences_change_places() -> None:
    state = filled(3)
    matrix, past = state.matrix.clone(), state.past.clone()
    state.exchange(0, 2)
    assert torch.equal(state.matrix, matrix[[2, 1, 0]])
    assert torch.equal(state.past, past[[2, 1, 0]])
