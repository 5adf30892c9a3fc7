"""The decoder's parts, each with linears made up: where norms and residuals stand, what is scaled, capped or added."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from int8conv.runtime.backends.torch_backend import TorchBackend
from int8conv.runtime.decoder.attention import Attention
from int8conv.runtime.decoder.block import Block
from int8conv.runtime.decoder.cache import KVCache
from int8conv.runtime.decoder.decoder import Decoder, Embedding, Output
from int8conv.runtime.decoder.ffn.mixture import MixtureOfExperts
from int8conv.runtime.decoder.norm import norm_weights
from int8conv.runtime.models.architecture import Architecture, Module, read_architecture
from int8conv.runtime.models.config import DecoderConfig

from ...checkpoints import LLAMA, OPT, random_tensors

F32 = torch.float32


class Made:
    """Weights of a config, float32; tells which linears were asked for together."""

    dtype = F32

    def __init__(self, config: dict[str, Any]) -> None:
        self.tensors = {name: t.float() for name, t in random_tensors(config).items()}
        self.backend: Any = TorchBackend()
        self.asked: list[list[str]] = []

    def tensor(
        self, module: Module, kind: str = "weight", dtype: torch.dtype | None = None
    ) -> Tensor:
        return self.tensors[module.tensor_name(kind)]

    def lookup(self, module: Module) -> Any:
        return lambda rows: self.tensor(module)[rows]

    def projection(self, modules: Any) -> Any:
        self.asked.append([m.role for m in modules])

        def project(x: Tensor, *, residual: Tensor | None = None) -> list[Tensor]:
            found = [x @ self.tensor(m).t() + (self.tensor(m, "bias") if m.bias else 0) for m in modules]  # fmt: skip
            return found if residual is None else [residual + found[0]]

        return project


def form(config: dict[str, Any] = LLAMA, **changes: Any) -> Architecture:
    found = read_architecture(config, ())
    return replace(found, config=replace(found.config, **changes))


MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 1}


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms_have_an_offset_in_float32(offset: float) -> None:
    """In 16 bits a sum about 1 would lose most of the weight's."""
    module = Module("final_norm", "n", "norm", None, (3,), True)
    weight = torch.tensor([1e-4, -2e-4, 0.5]).half()
    weights: Any = SimpleNamespace(tensor=lambda m, kind="weight": weight if kind == "weight" else -weight)  # fmt: skip
    config = replace(form().config, norm_offset=offset, norm="layer", norm_eps=0.25)
    found = norm_weights(config, module, weights)
    assert (found.rms, found.eps) == (False, 0.25)
    assert torch.equal(found.weight, weight.float() + 1 if offset else weight)
    assert found.weight.dtype == (torch.float32 if offset else torch.float16)
    assert found.bias is not None
    assert torch.equal(found.bias, -weight)
    plain = norm_weights(replace(config, norm="rms"), replace(module, bias=False), weights)
    assert plain.rms
    assert plain.bias is None


@pytest.mark.parametrize("fused", [None, "rows", "heads"])
def test_queries_keys_and_values_of_one_linear(fused: Literal["rows", "heads"] | None) -> None:
    """Four heads of two channels, two key heads: numbers say which head, and of what."""
    config = replace(form().config, num_heads=4, num_kv_heads=2, head_dim=2, fused_qkv=fused)
    q, k, v = [0, 0, 1, 1, 2, 2, 3, 3], [10, 10, 11, 11], [20, 20, 21, 21]
    rows = {
        None: [q, k, v],
        "rows": [q + k + v],
        "heads": [[*q[:4], *k[:2], *v[:2], *q[4:], *k[2:], *v[2:]]],
    }[fused]  # fmt: skip
    outputs = [torch.tensor(row).expand(1, 3, -1) for row in rows]
    spec: Any = None
    found = Attention(config, spec, spec, spec, spec)._split(outputs)
    assert [x.shape for x in found] == [(1, 3, 8), (1, 3, 4), (1, 3, 4)]
    assert [x[0, 0].tolist() for x in found] == [q, k, v]


X = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0))


def block(config: DecoderConfig, *norms: float | None) -> Block:
    """Norms that multiply; attention that multiplies by 3, an FFN by 7."""
    made = object.__new__(Block)
    made.config = config

    def branch(factor: float) -> Any:
        def run(x: Tensor, *rest: Any) -> Tensor:
            residual = rest[-1] if rest else None
            return x * factor if residual is None else residual + x * factor

        return run

    multipliers = [None if n is None else (lambda x, n=n: x * n) for n in norms]
    names = ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm")
    for name, norm in zip(names, multipliers, strict=True):
        setattr(made, name, norm)
    made.attention, made.ffn, made.fused = branch(3.0), branch(7.0), None
    made.laurel = made.input = made.scale = None
    return made


def after(x: Tensor, *factors: float) -> Tensor:
    """``x`` plus it times a factor, again and again."""
    for factor in factors:
        x = x + x * factor
    return x


NONE: Any = None
BASE = form().config


@pytest.mark.parametrize(
    ("changes", "norms", "expected"),
    [
        ({}, (2.0, None, 5.0, None), after(X, 2 * 3, 5 * 7)),
        ({"residual_scale": 0.5}, (2.0, None, 5.0, None), after(X, 3, 5 * 7 / 2)),
        ({"norms": "around"}, (2.0, 11.0, 5.0, 13.0), after(X, 2 * 3 * 11, 5 * 7 * 13)),
        ({"norms": "after"}, (None, 11.0, None, 13.0), after(X, 3 * 11, 7 * 13)),
        ({"norms": "after", "residual_scale": 2.0}, (None, 11.0, None, 13.0), after(X, 66, 182)),
        ({"norms": "after sum"}, (2.0, None, 5.0, None), after(after(X, 3) * 2, 7) * 5),
        ({"parallel": True}, (2.0, None, 5.0, None), X + X * 6 + X * 5 * 7),
        ({"parallel": True}, (2.0, None, None, None), X + X * 6 + X * 2 * 7),
        ({"parallel": True}, (None, None, None, None), X + X * 3 + X * 7),
    ],
)
def test_where_norms_and_residuals_stand(changes: dict[str, Any], norms: Any, expected: Tensor) -> None:  # fmt: skip
    found = block(replace(BASE, **changes), *norms)(X, NONE)
    torch.testing.assert_close(found, expected)


def test_a_fused_layer_is_asked_first() -> None:
    made = block(BASE, 2.0, None, 5.0, None)
    made.fused = lambda x, positions, cache: x * 100
    assert torch.equal(made(X, NONE), X * 100)
    made.fused = lambda x, positions, cache: None
    torch.testing.assert_close(made(X, NONE), after(X, 6, 35))


def test_linears_of_one_input_are_asked_for_together() -> None:
    weights = Made(LLAMA)
    made = Block(form(), 1, weights)
    assert weights.asked == [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]]
    parts = made.parts
    assert (parts.attention.layer, parts.attn_post_norm) == (1, None)
    assert parts.attn_norm is not None
    assert parts.mlp_norm is not None
    assert parts.ffn is not None
    assert (parts.ffn.activation, parts.ffn.gated) == ("silu", True)
    assert Block(form(), 1, weights, cache_layer=0).attention.spec.layer == 0
    weights = Made(MIXTRAL)
    made = Block(form(MIXTRAL), 0, weights)
    assert isinstance(made.ffn, MixtureOfExperts)
    assert made.parts.ffn is None
    assert ["2.gate", "2.up"] in weights.asked
    assert ["router"] in weights.asked


def test_an_observer_sees_the_input_of_each_group_that_can_be_quantized() -> None:
    seen: list[tuple[str, Tensor]] = []
    weights = Made(LLAMA)
    weights.backend.fuse_layer = lambda parts: pytest.fail("nothing is fused")
    made = Block(form(), 0, weights, lambda module, x: seen.append((module.role, x)))
    plain = Block(form(), 0, Made(LLAMA))
    x = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
    positions = Embedding(form(), weights, F32)(torch.zeros(1, 3, dtype=torch.int64))[1]
    assert torch.equal(made(x, positions), plain(x, positions))
    assert [role for role, _ in seen] == ["q", "o", "gate", "down"]
    assert made.attn_norm is not None
    assert torch.equal(seen[0][1], made.attn_norm(x))
    assert seen[3][1].shape == (1, 3, 160)
    seen.clear()
    Block(form(MIXTRAL), 0, Made(MIXTRAL), lambda module, x: seen.append((module.role, x)))(x, positions)  # fmt: skip
    assert "router" not in [role for role, _ in seen]


IDS = torch.tensor([[5, 7, 5]])


def test_embeddings_of_tokens_and_positions() -> None:
    """OPT's positions begin at row 2; narrower embeddings are projected."""
    config = OPT | {"word_embed_proj_dim": 32}
    weights = Made(config)
    tokens, positions, project = (
        weights.tensors[f"model.decoder.{name}.weight"] for name in ("embed_tokens", "embed_positions", "project_in")
    )  # fmt: skip
    x, where, own = Embedding(form(config), weights, F32)(IDS)
    assert own == [None] * 2
    assert where.ids.tolist() == [0, 1, 2]
    expected = tokens[IDS].double() @ project.double().t() + positions[[2, 3, 4]].double()
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_scale_of_embeddings_is_rounded_to_their_dtype(dtype: torch.dtype) -> None:
    """As Gemma's square root of 2304 is."""
    weights = Made(LLAMA)
    x, _, _ = Embedding(form(embedding_scale=2304**0.5 + 0.11), weights, dtype)(IDS)
    scale = float(torch.tensor(48.11, dtype=dtype))
    assert scale == (48.0 if dtype == torch.bfloat16 else pytest.approx(48.11))
    torch.testing.assert_close(x, weights.tensors["model.embed_tokens.weight"][IDS] * scale)


def test_logits_are_scaled_then_capped() -> None:
    weights = Made(LLAMA)
    x = torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(0))
    gain, head = (weights.tensors[f"{n}.weight"].double() for n in ("model.norm", "lm_head"))
    normed = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt() * gain
    plain = normed @ head.t()
    for changes, expected in (
        ({}, plain), ({"logit_scale": 3.0}, plain * 3), ({"logit_softcap": 2.0}, torch.tanh(plain / 2) * 2),
        ({"logit_scale": 3.0, "logit_softcap": 2.0}, torch.tanh(plain * 3 / 2) * 2),
    ):  # fmt: skip
        found = Output(form(**changes), weights)(x)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_passes_with_and_without_a_cache() -> None:
    """In parts as in one; the cache is counted as filled once; the last logits alone are the last."""
    decoder = Decoder(form(), Made(LLAMA), F32)
    ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])
    whole = decoder.forward(ids)
    assert whole.shape == (2, 5, 96)
    last = decoder.forward(ids, last_only=True)
    torch.testing.assert_close(last, whole[:, -1:], rtol=1e-5, atol=1e-5)
    cache = decoder.cache(batch=2, capacity=6)
    parts = []
    for part in ids.split([2, 1, 2], dim=1):
        parts.append(decoder.forward(part, cache))
        assert cache.length == sum(x.shape[1] for x in parts)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)
    assert not whole.requires_grad


SHARING: dict[str, Any] = {
    "model_type": "gemma4_text", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 24, "vocab_size": 90, "vocab_size_per_layer_input": 90,
    "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 64, "sliding_window": 3,
}  # fmt: skip


def test_layers_that_leave_nothing_in_the_cache_see_the_last_token_of_a_prompt_alone() -> None:
    """Those that attend to keys of earlier layers, and compute none; also behind other tokens, of different numbers."""
    made = Made(SHARING)
    decoder = Decoder(form(SHARING), made, F32)
    assert [sum(role in "kv" for role in roles) for roles in made.asked if "q" in roles] == [
        2,
        2,
        0,
        0,
    ]
    ids = torch.randint(90, (2, 9), generator=torch.Generator().manual_seed(0))
    whole, seen = decoder.forward(ids), list[int]()
    assert decoder.tail == 2
    assert Decoder(form(), Made(LLAMA), F32).tail == 2  # of two: none
    for block in decoder.blocks:
        block.input = Seen(block.input, seen)  # type: ignore[union-attr, assignment]
    cache = decoder.cache(batch=2, capacity=12)
    for begin, end in ((0, 5), (5, 8), (8, 9)):
        seen.clear()
        last = decoder.forward(ids[:, begin:end], cache, last_only=True)
        torch.testing.assert_close(last, whole[:, end - 1 : end], rtol=1e-4, atol=1e-4)
        assert seen == [end - begin, end - begin, 1, 1]
    cache.lengths[0] = 4  # then what follows differs, too
    last = decoder.forward(ids[:, :3], cache, last_only=True)
    longer = torch.cat([ids[:1, :4], ids[:1, :3]], dim=1)
    torch.testing.assert_close(last[:1], decoder.forward(longer)[:, -1:], rtol=1e-4, atol=1e-4)


class Seen:
    """Counts the tokens that a part of a layer is called with."""

    def __init__(self, part: Any, seen: list[int]) -> None:
        self.part, self.seen = part, seen

    def __call__(self, x: Tensor, own: Tensor) -> Tensor:
        self.seen.append(x.shape[1])
        y: Tensor = self.part(x, own)
        return y


def test_the_cache_has_a_dtype_of_its_own() -> None:
    for kv_cache, expected in ((None, F32), (torch.float16, torch.float16)):
        decoder = Decoder(form(), Made(LLAMA), F32, kv_cache)
        cache = decoder.cache(batch=1, capacity=2)
        assert isinstance(cache, KVCache)
        assert decoder.kv_cache == cache.layer(0)[0].dtype == expected


def test_experts_make_the_host_wait() -> None:
    assert Decoder(form(MIXTRAL), Made(MIXTRAL), F32).needs_host_sync
    assert not Decoder(form(), Made(LLAMA), F32).needs_host_sync
