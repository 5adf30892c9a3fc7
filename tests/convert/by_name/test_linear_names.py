"""What a module's path says of it, for names as families have them."""

from __future__ import annotations

import pytest

from int8conv.convert.by_name.linear_names import is_kept_by_name, is_numbered, is_vision_or_audio


@pytest.mark.parametrize(
    "path",
    [
        "model.layers.0.mlp.gate",
        "model.layers.3.block_sparse_moe.gate",
        "model.layers.0.mlp.router.proj",
        "model.layers.0.router.layer",
        "model.layers.0.feed_forward.gate.router_mlp.0",
        "model.layers.0.self_attn.indexer.weights_proj",
        "model.layers.0.linear_attn.in_proj_ba",
        "model.layers.0.linear_attn.in_proj_a",
        "model.layers.0.mixer.dt_proj",
        "model.layers.0.mixer.x_proj",
        "model.layers.0.attn.b_proj",
        "model.layers.0.attention.f_proj",
        "model.layers.0.attn.compressor.wgate",
        "model.layers.61.shared_head.head",
        "model.layers.61.embed_tokens",
        "model.embed_tokens.2",
        "model.lm_heads.1",
        "lm_head",
        "transformer.wte",
        "model.layers.0.input_layernorm",
        "model.layers.0.self_attn.q_norm",
        "model.layers.0.q_proj.lora_A.default",
        "model.layers.0.adapter.down",
        "model.layers.0.short_conv.conv",
        "score",
    ],
)
def test_what_stays(path: str) -> None:
    assert is_kept_by_name(path)


@pytest.mark.parametrize(
    "path",
    [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.gate_up_proj",
        "model.layers.0.mlp.proj_up_gate",
        "model.layers.0.attn.linear_gate",
        "model.layers.0.attn.output_gate",
        "model.layers.0.mlp.experts.7.down_proj",
        "transformer.h.0.mlp.c_fc",
        "model.layers.0.linear_attn.in_proj_qkvz",
        "model.layers.0.mixer.out_proj",
    ],
)
def test_what_becomes_int8(path: str) -> None:
    assert not is_kept_by_name(path)


def test_a_gate_beside_a_matrix_up_is_half_of_an_ffn() -> None:
    assert is_kept_by_name("model.layers.0.mlp.gate")
    assert not is_kept_by_name("model.layers.0.mlp.gate", gated=True)
    assert is_kept_by_name("model.layers.0.mlp.router.gate", gated=True)


def test_numbered_blocks() -> None:
    assert is_numbered("model.layers.10.mlp.up.weight")
    assert is_numbered("0.up.weight")
    assert not is_numbered("model.embed_tokens.weight")
    assert not is_numbered("model.layer10.up.weight")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("visual.blocks.0.attn.qkv", True),
        ("model.vision_tower.layers.0.fc1", True),
        ("audio_tower.layers.0.fc1", True),
        ("multi_modal_projector.linear_1", True),
        ("model.visual.merger.mlp.0", True),
        ("model.language_model.layers.0.mlp.up_proj", False),
        ("model.revision.layers.0.up", False),
    ],
)
def test_parts_that_see_and_hear(path: str, expected: bool) -> None:
    assert is_vision_or_audio(path) is expected
