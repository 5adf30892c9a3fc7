"""The int8 cache against its formula, in every family; its memory; and what the evaluation makes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

import int8conv
from int8conv.errors import ArgumentError
from int8conv.runtime.backends import torch_attention, torch_backend
from int8conv.runtime.decoder.cache import KVCache, Quantized
from int8conv.runtime.decoder.quantized_cache import QuantizedCache, quantize_heads
from int8conv.runtime.generate.session import Session
from int8conv.runtime.loader import cache_dtype
from int8conv.runtime.measure.evaluate import evaluate
from int8conv.runtime.model import Model
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.text.tokenizer import Tokenizer

from ...checkpoints import LLAMA
from ..measure.test_evaluate import TEXT
from ..models.test_families import CONFIGS
from ..reference import TOLERANCE, reference
from ..test_batch import PROMPTS, STEPS


def rounded(x: Tensor) -> Tensor:
    """What keys or values become: the formula in float64."""
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=2**-14).half().double()
    return ((x.double() / scale).round().clamp(-127, 127) * scale).float()


def test_codes_are_within_half_a_scale() -> None:
    x = torch.randn(2, 3, 50, 64, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-3, 4, 50)[:, None]
    x[0, 0, 0] = 0
    x[0, 0, 1] = 1e-7
    x[0, 0, 2, 5] = 5e4
    codes, scale = quantize_heads(x)
    assert scale.dtype == torch.float16
    assert codes.abs().max() == 127
    assert (codes == codes.round()).all()
    error = (codes * scale.float() - x).abs()
    assert (error <= scale.float() * (0.5 + 127 * 2**-11)).all()
    assert (error.amax(-1) >= 0.4 * scale[..., 0].float())[0, 1, 10:].all()
    assert codes[0, 0, :2].count_nonzero() == 0
    assert torch.equal(codes * scale.float(), rounded(x))


def test_what_overflows_is_not_hidden() -> None:
    codes, scale = quantize_heads(torch.tensor([[1.0, math.nan], [1e9, -1e9]]))
    assert scale[0].isnan()
    assert (codes[1] * scale[1]).tolist() == [127 * 65504.0, -127 * 65504.0]


@pytest.mark.parametrize("name", [name for name in CONFIGS if "kv_lora_rank" not in CONFIGS[name][1]])  # fmt: skip
def test_every_family_through_the_cache(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Prompts of different length, then token by token together: attention of rounded keys and values, a head at a time.

    Held to whole attention in each layer, not to the logits of another run: there a last bit may change a code.
    """
    kind, options = CONFIGS[name]
    reference(AutoConfig.for_model(kind, **options), tmp_path, torch.float32)
    model = int8conv.load(tmp_path, kv_cache="int8")
    worst = []

    def attend(q: Tensor, k: Quantized, v: Quantized, *how: Any) -> Tensor:
        found = torch_attention.attend(q, k, v, *how)
        whole = (torch.cat([x.widened(i, 0, x.shape[1], q.dtype) for i in range(len(q))]) for x in (k, v))  # fmt: skip
        worst.append(float((found - torch_attention.attend(q, *whole, *how)).abs().max()))
        return found

    monkeypatch.setattr(torch_attention, "WIDENED_AT_ONCE", 1)
    monkeypatch.setattr(torch_backend, "attend", attend)
    token_ids = torch.randint(3, 101, (4, 40), generator=torch.Generator().manual_seed(1))
    cache = model.decoder.cache(batch=4, capacity=40)
    assert isinstance(cache, QuantizedCache)
    for part in cache._parts:
        part.fill_(100)  # what is not written must not count
    for i, prompt in enumerate(PROMPTS):
        first = model.decoder.forward(token_ids[i : i + 1, :prompt], cache.sequence(i))
    for step in range(STEPS):
        tokens = torch.stack([token_ids[i, n + step] for i, n in enumerate(PROMPTS)])[:, None]
        logits = model.decoder.forward(tokens, cache)
    assert cache.lengths.tolist() == [n + STEPS for n in PROMPTS]
    attending = sum(map(model.config.has_attention, range(model.config.num_layers)))
    assert len(worst) == (len(PROMPTS) + STEPS) * attending
    assert max(worst) <= TOLERANCE / 10
    monkeypatch.undo()
    exact = int8conv.load(tmp_path)
    assert 0 < (first - exact.logits(token_ids[3:, :1])).abs().max() < 0.1 * logits.std()


def test_the_cache_keeps_rounded_values() -> None:
    """New ones behind old ones, in each sequence at its own place."""
    plain = read_architecture(LLAMA, ()).config
    config = replace(plain, num_layers=2, num_kv_heads=3, head_dim=16)
    cache = QuantizedCache(config, batch=2, capacity=9)
    keys, values = torch.randn(2, 2, 3, 9, 16, generator=torch.Generator().manual_seed(0))
    cache.sequence(0).update(1, keys[:1, :, :5], values[:1, :, :5])
    cache.sequence(1).update(1, keys[1:, :, :2], values[1:, :, :2])
    cache.lengths += torch.tensor([5, 2])
    new = [torch.stack([x[0, :, 5:8], x[1, :, 2:5]]) for x in (keys, values)]
    for found, truth in zip(cache.update(1, *new), (keys, values), strict=True):
        assert found.shape == (2, 3, 8, 16)
        assert torch.equal(found.widened(0, 1, 3, torch.float32), rounded(truth[:1, 1:3, :8]))
        assert torch.equal(found.widened(1, 0, 3, torch.float32)[:, :, :5], rounded(truth[1:, :, :5]))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrower_float_cache(example: Path, dtype: torch.dtype) -> None:
    model = int8conv.load(example, kv_cache=str(dtype).removeprefix("torch."))
    ids = torch.arange(40, 80)[None]
    cache = model.decoder.cache(batch=1, capacity=40)
    assert cache._parts[0].dtype == dtype
    found = model.decoder.forward(ids, cache)
    exact = model.logits(ids)
    assert 0 < (found - exact).abs().max() < 40 * torch.finfo(dtype).eps
    assert torch.equal(found, int8conv.load(example, kv_cache="float32").logits(ids)) is False


def test_memory(example: Path) -> None:
    """66 bytes instead of 128 for a head and token; what is widened at once is a block."""
    model = int8conv.load(example, kv_cache="int8")
    shape = {"batch": 2, "capacity": 100}
    half = KVCache(model.config, dtype=torch.float16, **shape)  # type: ignore[arg-type]
    assert model.decoder.cache(**shape).nbytes * 128 == half.nbytes * 66


def test_what_is_widened_is_a_block(monkeypatch: pytest.MonkeyPatch, example: Path) -> None:
    sizes = []
    widened = Quantized.widened

    def watching(self: Quantized, *where: int, dtype: torch.dtype = torch.float32) -> Tensor:
        block = widened(self, *where[:3], dtype)
        sizes.append(block.shape)
        return block

    monkeypatch.setattr(Quantized, "widened", watching)
    monkeypatch.setattr(torch_attention, "WIDENED_AT_ONCE", 64 * 30)
    model = int8conv.load(example, kv_cache="int8")
    cache = model.decoder.cache(batch=2, capacity=31)
    for count, heads in ((15, 2), (16, 1)):
        sizes.clear()
        model.decoder.forward(torch.full((2, count), 7), cache)
        assert set(sizes) == {(1, heads, cache.length, 64)}
        assert len(sizes) == 2 * 6 * 2 * 2 // heads


@pytest.fixture
def model(example_int8: Path) -> Model:
    return int8conv.load(example_int8, mode="w8a16", kv_cache="int8")


def test_sessions_grow_and_go_back(model: Model) -> None:
    first, second = [5, 6, 7, 8, 9], [5, 6, 7, 70, 71, 72]
    expected = model.generate(second, max_new_tokens=40)
    session = Session(model.decoder)
    model.generate(first, max_new_tokens=3, session=session)
    assert model.generate(second, max_new_tokens=40, session=session) == expected


def test_batches(model: Model) -> None:
    prompts = ["The function", "A", "In a `Buffer` the"]
    together = model.generate_batch(prompts, max_new_tokens=24)
    assert together == [model.generate(prompt, max_new_tokens=24) for prompt in prompts]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_the_evaluation_sees_what_tokens_see_one_by_one(example: Path, text: Path) -> None:
    """The divergence that the cache alone causes, which is small: perplexity would hide it behind the rounding of other products."""
    exact, model = int8conv.load(example), int8conv.load(example, kv_cache="int8")
    ids = torch.tensor(Tokenizer.load(example).encode(TEXT))[:96]
    divergence = []
    for window in ids.split(48):
        cache = model.decoder.cache(batch=1, capacity=48)
        steps = torch.cat([model.decoder.forward(t[None, None], cache)[0] for t in window])
        expected = exact.logits(window[None])[0].double().log_softmax(-1)
        found = steps.double().log_softmax(-1)
        divergence.append((expected.exp() * (expected - found)).sum(-1)[:-1])
    evaluation = evaluate(example, text, against=example, kv_cache="int8", window=48, tokens=96)
    assert evaluation.against is not None
    assert evaluation.against.kl_mean == pytest.approx(float(torch.cat(divergence).mean()), rel=0.02)  # fmt: skip
    assert (evaluation.kv_cache, evaluate(example, text, window=48, tokens=96).kv_cache) == ("int8", None)  # fmt: skip


def test_a_source_against_itself_shows_the_cache_alone(example: Path, text: Path) -> None:
    distance = {}
    for cache in ("float32", "float16", "int8"):
        found = evaluate(
            example, text, against=example, kv_cache=cache, window=64, tokens=512
        ).against
        assert found is not None
        assert found.ratio == pytest.approx(1, abs=2e-3)
        distance[cache] = found.kl_mean
    assert distance["float32"] <= 1e-9
    assert 0 < 20 * distance["float16"] < distance["int8"] < 1e-3


def test_unknown_caches(example: Path, text: Path) -> None:
    with pytest.raises(ArgumentError, match="kv_cache: expected float32 or float16 or bfloat16 or int8, found 'int4'"):  # fmt: skip
        int8conv.load(example, kv_cache="int4")
    with pytest.raises(ArgumentError, match="kv_cache"):
        evaluate(example, text, kv_cache="fp8")
    assert cache_dtype("float16", torch.float16, "cuda") == torch.float16
    assert cache_dtype("int8", torch.float16, "cuda") == torch.int8
    with pytest.raises(ArgumentError, match="kv_cache on a GPU: expected float16 or int8, found bfloat16"):  # fmt: skip
        cache_dtype("bfloat16", torch.float16, "cuda")
