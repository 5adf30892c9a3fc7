"""The backend of a GPU, on the CPU: positions and their tables, what is deferred, and attention with its cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from int8conv.kernels.gpu.linear import Operand
from int8conv.kernels.weight import FallbackCounter
from int8conv.runtime.backends.gpu.backend import GpuBackend
from int8conv.runtime.backends.gpu.cache import DeviceCache
from int8conv.runtime.backends.gpu.decode import DecodeSteps
from int8conv.runtime.backends.gpu.deferred import Deferred
from int8conv.runtime.backends.gpu.projections import DenseProjection
from int8conv.runtime.backends.gpu.sampler import DeviceSampler
from int8conv.runtime.backends.parts import tensor_of
from int8conv.runtime.backends.torch_backend import TorchBackend
from int8conv.runtime.decoder.attention_spec import AttentionSpec
from int8conv.runtime.decoder.norms import NormWeights, normalised
from int8conv.runtime.decoder.rotary import Rotary
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.config import Rope

from ....checkpoints import LLAMA
from .conftest import CPU

pytestmark = pytest.mark.usefixtures("few_programs")

CONFIG = read_architecture(LLAMA, ()).config
G = torch.Generator().manual_seed(0)
HALF = torch.float16


def backend(positions: int = 12) -> GpuBackend:
    return GpuBackend(positions, CPU)


def cache(made: GpuBackend, batch: int, *lengths: int, dtype: torch.dtype = HALF) -> DeviceCache:
    found = made.cache(CONFIG, batch=batch, capacity=12, dtype=dtype)
    if lengths:
        found.lengths.copy_(torch.tensor(lengths))
        found.length = max(lengths)
    return found


def ids(batch: int, tokens: int) -> Tensor:
    return torch.zeros(batch, tokens, dtype=torch.int64)


def test_what_it_makes() -> None:
    counters = {"x": FallbackCounter(4)}
    made = GpuBackend(12, CPU, counters)
    assert made.counters is counters
    assert backend().counters == {}
    assert (
        made.cache(CONFIG, batch=3, capacity=7, dtype=torch.int8).capacity == 16
    )  # a multiple of that
    assert isinstance(made.sampler([], 5), DeviceSampler)
    unused: Any = None
    assert made.fuse_layer(unused) is None
    steps = made.steps(unused, cache(made, 1))
    assert isinstance(steps, DecodeSteps)
    assert steps.counters is counters
    with pytest.raises(AssertionError):
        made.steps(unused, TorchBackend().cache(CONFIG, batch=1, capacity=2, dtype=HALF))


def test_positions_of_a_prompt_and_of_steps() -> None:
    made = backend()
    found = made.positions([], None, ids(2, 3), HALF)
    assert found.ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert (found.filled.tolist(), found.past, found.tables) == ([3, 3], 0, [])
    found = made.positions([], cache(made, 2, 5, 2), ids(2, 1), HALF)
    assert (found.ids.tolist(), found.filled.tolist(), found.past) == ([[5], [2]], [6, 3], 5)
    assert found.ids.dtype == found.filled.dtype == torch.int32
    assert found.to(torch.device("meta")) is found
    filled = cache(made, 2, 5, 5)
    found, last = (
        f(made.positions([], filled, ids(2, 3), HALF)) for f in (lambda x: x, lambda x: x.last())
    )
    assert (last.ids.tolist(), last.past) == ([[7], [7]], 7)
    assert last.filled.tolist() == found.filled.tolist() == [8, 8]


@pytest.mark.parametrize("rope", [Rope(1e4), Rope(100.0, "linear", factor=4.0), Rope(1e4, magnitude=1.25)])  # fmt: skip
def test_tables_of_all_positions_are_made_once(rope: Rope) -> None:
    made, rotary = backend(), Rotary(rope, 16)
    first = made.positions([rotary, rotary], None, ids(1, 3), HALF).tables
    assert len(first) == 2
    cos, sin = first[0]
    wanted = rotary.tables(torch.arange(12), torch.float32)
    torch.testing.assert_close(cos, wanted[0][:, :8])
    torch.testing.assert_close(sin, wanted[1][:, :8])
    for later in (made.positions([rotary] * 2, cache(made, 1, 4), ids(1, n), HALF) for n in (1, 2)):
        assert later.tables[0][0] is cos


@pytest.mark.parametrize("tokens", [1, 2])
def test_frequencies_that_grow_are_those_of_the_sequence(tokens: int) -> None:
    """A step's by its own position, a prompt's by where it ends, beyond the context before scaling and before."""
    rotary = Rotary(Rope(1e4, "dynamic", factor=4.0, original_positions=4.0), 16)
    for past in (0, 2, 7):
        made = backend()
        cos, sin = made.positions([rotary], cache(made, 1, past), ids(1, tokens), HALF).tables[0]
        at = torch.arange(past, past + tokens)
        wanted = rotary.tables(at, torch.float32)
        torch.testing.assert_close(cos[at], wanted[0][:, :8])
        torch.testing.assert_close(sin[at], wanted[1][:, :8])


@pytest.mark.parametrize("rms", [True, False])
def test_norms_wait_for_their_reader(rms: bool) -> None:
    x = torch.randn(2, 3, 64, generator=G).half()
    gain = torch.rand(64, generator=G).half()
    norm = NormWeights(rms, 1e-5, gain, None if rms else gain)
    found = backend().norm(x, norm)
    assert isinstance(found, Deferred)
    assert found.operand.x.data_ptr() == x.data_ptr()
    torch.testing.assert_close(tensor_of(found), normalised(x, norm), rtol=2e-3, atol=2e-3)


def test_inner_states_wait_too() -> None:
    x, gate, up = torch.randn(3, 64, 64, generator=G).half()
    wide = DenseProjection([(gate[:16], None), (up[:16], None)])
    found = backend().inner(wide, x.view(2, 32, 64), "silu", True)
    assert found.shape == (2, 32, 16)
    assert isinstance(found.operand, Operand)
    x = x.double()
    wanted = F.silu(x @ gate[:16].double().t()) * (x @ up[:16].double().t())
    assert (found.value().view(64, 16).double() - wanted).abs().max() <= 2e-3 * wanted.abs().max()


SPEC = AttentionSpec(1, 4, 2, 16, 0.25, query_norm=NormWeights(True, 1e-6, torch.ones(16).half() * 2, None))  # fmt: skip


def qkv(batch: int, tokens: int) -> list[Tensor]:
    return [torch.randn(batch, tokens, n * 16, generator=G) for n in (4, 2, 2)]


def by_torch(parts: list[Tensor], rotary: Rotary) -> Tensor:
    made = TorchBackend()
    tokens = parts[0].shape[1]
    positions = made.positions([rotary], None, ids(1, tokens), torch.float32)
    return made.attend(parts, SPEC, positions, None)


@pytest.mark.parametrize("dtype", [HALF, torch.int8], ids=str)
def test_attention_through_a_cache_is_that_without(dtype: torch.dtype) -> None:
    """A prompt in two parts, then a step; other layers stay empty. With PyTorch's backend as the truth."""
    rotary, made = Rotary(Rope(1e4), 16), backend()
    parts = qkv(1, 6)
    wanted = by_torch(parts, rotary)
    halves = [x.half() for x in parts]
    whole = made.attend(halves, SPEC, made.positions([rotary], None, ids(1, 6), HALF), None)
    limit = 4e-3 * wanted.abs().max()
    assert (whole - wanted).abs().max() <= limit
    filled, found = cache(made, 1, dtype=dtype), []
    for begin, end in ((0, 3), (3, 5), (5, 6)):
        positions = made.positions([rotary], filled, ids(1, end - begin), HALF)
        found.append(made.attend([x[:, begin:end] for x in halves], SPEC, positions, filled))
        filled.advance(end - begin)
    limit = limit if dtype == HALF else 0.03 * wanted.abs().max()
    assert (torch.cat(found, dim=1) - wanted).abs().max() <= limit
    assert all((part[0] == 0).all() for part in filled._parts)


def test_steps_of_sequences_of_different_length() -> None:
    rotary, made = Rotary(Rope(1e4), 16), backend()
    filled = cache(made, 2)
    both = [qkv(1, 5), qkv(1, 3)]
    for i, parts in enumerate(both):
        part, tokens = filled.sequence(i), parts[0].shape[1] - 1
        positions = made.positions([rotary], part, ids(1, tokens), HALF)
        made.attend([x[:, :-1].half() for x in parts], SPEC, positions, part)
        part.advance(tokens)
    filled.length = 4
    step = [torch.cat([a[:, -1:], b[:, -1:]]).half() for a, b in zip(*both, strict=True)]
    found = made.attend(step, SPEC, made.positions([rotary], filled, ids(2, 1), HALF), filled)
    for i, parts in enumerate(both):
        wanted = by_torch(parts, rotary)[0, -1]
        assert (found[i, 0] - wanted).abs().max() <= 4e-3 * wanted.abs().max()
