"""PyTorch's operators between the linears: each against its formula, alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from int8conv.runtime.backends.torch_backend import TorchBackend, TorchPositions
from int8conv.runtime.decoder.attention_spec import AttentionSpec
from int8conv.runtime.decoder.cache import KVCache
from int8conv.runtime.decoder.norms import NormWeights, normalised
from int8conv.runtime.decoder.quantized_cache import QuantizedCache
from int8conv.runtime.decoder.rotary import Rotary, rotate
from int8conv.runtime.generate.sampler import TorchSampler
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.config import Activation, Rope

from ...checkpoints import LLAMA

CONFIG = read_architecture(LLAMA, ()).config
CPU = torch.device("cpu")
G = torch.Generator().manual_seed(0)
BACKEND = TorchBackend()


def cache(batch: int, lengths: list[int]) -> KVCache:
    made = KVCache(CONFIG, batch=batch, capacity=16, dtype=torch.float32)
    made.lengths = torch.tensor(lengths)
    return made


def test_caches() -> None:
    plain = BACKEND.cache(CONFIG, batch=2, capacity=5, dtype=torch.float16)
    narrow = BACKEND.cache(CONFIG, batch=3, capacity=7, dtype=torch.int8)
    assert (type(plain), plain.capacity, len(plain.lengths)) == (KVCache, 5, 2)
    assert plain.nbytes == 2 * 2 * 2 * 2 * 5 * 16 * 2
    assert (type(narrow), narrow.capacity, len(narrow.lengths)) == (QuantizedCache, 7, 3)


def test_nothing_is_fused_and_steps_are_plain_passes() -> None:
    unused: Any = None
    assert BACKEND.fuse_layer(unused) is BACKEND.fuse_experts(unused) is None
    assert isinstance(BACKEND.sampler([], 5), TorchSampler)
    asked: list[Any] = []

    class Decoder:
        def forward(self, *args: Any, **options: Any) -> str:
            asked.append((*args, options))
            return "logits"

    step: Any = BACKEND.steps(Decoder(), "cache")  # type: ignore[arg-type]
    assert step("ids") == "logits"
    assert asked == [("ids", "cache", {"last_only": True})]


ROTARY = Rotary(Rope(1e4), 16)


def ids(batch: int, tokens: int) -> Tensor:
    return torch.zeros(batch, tokens, dtype=torch.int64)


@pytest.mark.parametrize(
    ("lengths", "tokens", "expected"),
    [(None, 3, [0, 1, 2]), ([0], 2, [0, 1]), ([5], 2, [5, 6]), ([5, 5], 1, [5]), ([5, 2], 2, [[5, 6], [2, 3]])],
)  # fmt: skip
def test_positions_follow_what_the_cache_has(lengths: list[int] | None, tokens: int, expected: list[Any]) -> None:  # fmt: skip
    batch = len(lengths or [0])
    filled = None if lengths is None else cache(batch, lengths)
    found = BACKEND.positions([ROTARY, ROTARY], filled, ids(batch, tokens), torch.float32)
    assert found.ids.tolist() == expected
    assert found.biases == {}
    assert len(found.tables) == 2
    cos, sin = found.tables[0]
    wanted = ROTARY.tables(torch.tensor(expected), torch.float32)
    if found.ids.ndim == 2:
        cos, sin = cos[:, 0], sin[:, 0]
    assert torch.equal(cos, wanted[0])
    assert torch.equal(sin, wanted[1])
    assert BACKEND.positions([], filled, ids(batch, tokens), torch.float32).tables == []


def test_each_sequence_has_the_frequencies_of_its_own_length() -> None:
    """Where they grow with it: the longer of the two is beyond the context before scaling."""
    grown = Rotary(Rope(1e4, "dynamic", factor=4.0, original_positions=4.0), 16)
    found = BACKEND.positions([grown], cache(2, [9, 2]), ids(2, 1), torch.float16)
    cos, sin = found.tables[0]
    assert (cos.shape, cos.dtype) == ((2, 1, 1, 16), torch.float16)
    for i, position in enumerate((9, 2)):
        wanted = grown.tables(torch.tensor([position]), torch.float16)
        assert torch.equal(cos[i, 0], wanted[0])
        assert torch.equal(sin[i, 0], wanted[1])


def test_positions_move_to_a_device_without_their_masks() -> None:
    made = TorchPositions(torch.arange(3), [(torch.ones(3, 2), torch.zeros(3, 2))], {None: None})
    assert made.to(CPU) is made
    moved = made.to(torch.device("meta"))
    assert {x.device.type for x in (moved.ids, *moved.tables[0])} == {"meta"}
    assert moved.biases == {}


def test_norms() -> None:
    x = torch.randn(1, 2, 8, generator=G)
    for rms in (True, False):
        norm = NormWeights(rms, 1e-5, torch.ones(8), None)
        assert torch.equal(BACKEND.norm(x, norm), normalised(x, norm))


@pytest.mark.parametrize(
    ("activation", "formula"),
    [("silu", F.silu), ("relu", F.relu), ("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"))],
)  # fmt: skip
def test_inner_states(activation: Activation, formula: Any) -> None:
    """Gate and up as two linears or as one, or up alone; the function is the gate's."""
    x, gate, up = torch.randn(3, 1, 2, 6, generator=G)
    both = torch.cat([gate, up], dim=-1)

    def linears(*outputs: Tensor) -> Any:
        def project(given: Tensor) -> tuple[Tensor, ...]:
            assert given is x
            return outputs

        return project

    for outputs, gated, expected in (
        ((gate, up), True, formula(gate.double()) * up.double()),
        ((both,), True, formula(gate.double()) * up.double()),
        ((up,), False, formula(up.double())),
    ):
        found = BACKEND.inner(linears(*outputs), x, activation, gated)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


SPEC = AttentionSpec(1, 4, 2, 16, 0.25)


def qkv(batch: int, tokens: int) -> list[Tensor]:
    return [torch.randn(batch, tokens, heads * 16, generator=G) for heads in (4, 2, 2)]


def heads(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], -1, 16).transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    y = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True, scale=0.25, enable_gqa=True)  # fmt: skip
    return y.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("rotary", [None, False, True])
@pytest.mark.parametrize("norm", [None, "head", "row"])
def test_attention_of_a_prompt(rotary: bool | None, norm: str | None) -> None:
    """Norms, then rotation, of queries and keys alone; tables of the layer's own rotary embedding."""
    gains = [1 + torch.randn(n * 16, generator=G) / 4 for n in ((4, 2) if norm == "row" else (1, 1))]  # fmt: skip
    norms = [NormWeights(True, 1e-6, gain, None) for gain in gains] if norm else [None, None]
    spec = replace(SPEC, query_norm=norms[0], key_norm=norms[1], by_head=norm != "row", rotary=1, interleaved=bool(rotary))  # fmt: skip
    rotaries = [] if rotary is None else [Rotary(Rope(77.0), 16), Rotary(Rope(1e4, interleaved=rotary), 16)]  # fmt: skip
    parts = qkv(2, 5)
    positions = BACKEND.positions(rotaries, None, ids(2, 5), torch.float32)
    found = BACKEND.attend(parts, spec, positions, None)
    q, k, v = parts
    if norms[0] is not None and norms[1] is not None:
        if norm == "row":
            q, k = normalised(q, norms[0]), normalised(k, norms[1])
        else:
            q, k = (normalised(x.view(2, 5, -1, 16), n).flatten(2) for x, n in ((q, norms[0]), (k, norms[1])))  # fmt: skip
    q, k, v = heads(q), heads(k), heads(v)
    if rotaries:
        tables = rotaries[1].tables(torch.arange(5), torch.float32)
        q, k = rotate(q, tables, bool(rotary)), rotate(k, tables, bool(rotary))
    torch.testing.assert_close(found.double(), sdpa(q, k, v), rtol=1e-5, atol=1e-5)


def test_keys_and_values_go_into_the_layers_cache_after_rotation() -> None:
    parts, filled = qkv(1, 5), cache(1, [0])
    whole = BACKEND.attend(parts, SPEC, BACKEND.positions([ROTARY], None, ids(1, 5), torch.float32), None)  # fmt: skip
    found = []
    for part in (slice(0, 3), slice(3, 5)):
        some = [x[:, part] for x in parts]
        positions = BACKEND.positions([ROTARY], filled, ids(1, some[0].shape[1]), torch.float32)
        found.append(BACKEND.attend(some, SPEC, positions, filled))
        filled.advance(some[0].shape[1])
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=1e-5, atol=1e-5)
    keys, values = filled.layer(1)
    tables = ROTARY.tables(torch.arange(5), torch.float32)
    torch.testing.assert_close(keys[:, :, :5], rotate(heads(parts[1]), tables))
    assert torch.equal(values[:, :, :5], heads(parts[2]))
    assert all((x == 0).all() for x in filled.layer(0))
