"""What becomes int8, what is kept and what is left out: from headers, without a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from int8conv.convert.outliers.selection import (
    COMPUTED,
    Group,
    Kept,
    Patterns,
    Selection,
    keep,
    matches,
    select_modules,
    why_skipped,
)
from int8conv.errors import (
    ArgumentError,
    CompanionError,
    MissingTensorError,
    ShapeError,
    UnsupportedDtypeError,
)
from int8conv.formats.safetensors.dtypes import byte_count
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.safetensors.stored import StoredTensor
from int8conv.formats.source.checkpoint import Checkpoint
from int8conv.formats.source.matrix import Matrix
from int8conv.runtime.models.architecture import read_architecture

from ...checkpoints import LLAMA, OPT
from ...formats.damage import rejected

FILE = LocalFile(Path("model.safetensors"))
A, M = "model.layers.{}.self_attn.", "model.layers.{}.mlp."
Shapes = dict[str, tuple[str, tuple[int, ...]] | None]


def stored(name: str, dtype: str = "F16", *shape: int) -> StoredTensor:
    return StoredTensor(name, dtype, shape, FILE, 0, byte_count(dtype, shape))


def checkpoint(config: dict[str, Any] = LLAMA, changes: Shapes | None = None) -> Checkpoint:
    """All that a config implies, with changes; None leaves a tensor out."""
    shapes: Shapes = {}
    for module in read_architecture(config, ()).modules:
        shape = module.shape[::-1] if module.transposed else module.shape
        shapes[module.tensor_name()] = ("F16", shape)
        if module.bias:
            shapes[f"{module.path}.bias"] = ("F16", module.shape[:1])
    shapes |= changes or {}
    tensors = {n: stored(n, x[0], *x[1]) for n, x in shapes.items() if x is not None}
    return Checkpoint(Path("source"), config, tensors, {}, None)


def select(config: dict[str, Any] = LLAMA, changes: Shapes | None = None, **patterns: Any) -> Selection:  # fmt: skip
    source = checkpoint(config, changes)
    return select_modules(source, read_architecture(config, source.tensors), Patterns(**patterns))


def told(selection: Selection) -> list[tuple[str, ...] | str]:
    """Linears of groups, and names of what is kept."""
    return [
        tuple(x.path for x in item.linears) if isinstance(item, Group) else item.name
        for item in selection.items
    ]


def layer(number: int) -> list[tuple[str, ...] | str]:
    a, m, here = A.format(number), M.format(number), f"model.layers.{number}."
    return [
        f"{here}input_layernorm.weight", tuple(f"{a}{r}_proj" for r in "qkv"), (f"{a}o_proj",),
        f"{here}post_attention_layernorm.weight", (f"{m}gate_proj", f"{m}up_proj"), (f"{m}down_proj",),
    ]  # fmt: skip


def test_groups_of_an_input_and_what_is_kept_in_the_order_of_the_model() -> None:
    found = select()
    assert told(found) == [
        "model.embed_tokens.weight", *layer(0), *layer(1), "model.norm.weight", "lm_head.weight",
    ]  # fmt: skip
    assert (found.skipped, found.notes) == ({}, ())
    groups = [item for item in found.items if isinstance(item, Group)]
    assert [(g.kind, g.input) for g in groups[:4]] == [
        ("attention", f"{A.format(0)}q_proj"), ("attention", f"{A.format(0)}o_proj"),
        ("ffn", f"{M.format(0)}gate_proj"), ("ffn", f"{M.format(0)}down_proj"),
    ]  # fmt: skip
    assert groups[0].linears[1].weight.shape == (32, 64)
    assert groups[0].linears[1].bias is None
    kinds = [item.kind for item in found.items if isinstance(item, Kept)]
    assert kinds == ["embedding", *["norm"] * 4, "norm", "head"]


@pytest.mark.parametrize(
    ("pattern", "left"), [("q_proj", "kv"), ("k_proj", "qv"), (r"0\.self_attn\.[qv]_", "k")]
)
def test_a_linear_that_is_kept_stands_outside_its_group_which_keeps_its_input(
    pattern: str, left: str
) -> None:
    """Calibration knows the input by the first linear, kept or not."""
    found = select(keep=(pattern,))
    group = next(item for item in found.items if isinstance(item, Group))
    assert [x.path for x in group.linears] == [f"{A.format(0)}{role}_proj" for role in left]
    assert group.input == f"{A.format(0)}q_proj"
    for role in set("qkv") - set(left):
        kept = next(x for x in found.items if isinstance(x, Kept) and f"0.self_attn.{role}" in x.name)  # fmt: skip
        assert kept.kind == "attention"


def test_all_of_a_group_may_be_kept() -> None:
    names = told(select(keep=("mlp",)))
    assert [n for n in names if "mlp" in n[0] or "mlp" in n] == [
        f"{M.format(i)}{role}_proj.weight" for i in (0, 1) for role in ("gate", "up", "down")
    ]


def test_further_matrices_may_become_int8_each_an_input_of_its_own() -> None:
    found = select(quantize=("embed", "lm_head"))
    assert told(found)[0] == ("model.embed_tokens",)
    last = found.items[-1]
    assert isinstance(last, Group)
    assert (last.kind, last.input, last.linears[0].path) == ("head", "lm_head", "lm_head")


def test_the_head_may_be_int8_with_an_input_in_16_bits() -> None:
    last = select(head="int8").items[-1]
    assert isinstance(last, Group)
    assert (last.kind, last.linears[0].path, last.exact_input) == ("head", "lm_head", True)
    assert select(head="int8-tied").items[-1] == last
    assert [x for x in told(select(head="int8")) if "lm_head" not in x] == [
        x for x in told(select()) if "lm_head.weight" not in x
    ]


def test_a_head_that_is_the_embedding_is_int8_where_that_is_asked_for() -> None:
    tied = LLAMA | {"tie_word_embeddings": True}
    first = select(tied, head="int8-tied").items[0]
    assert isinstance(first, Group)
    assert (first.linears[0].path, first.exact_input) == ("model.embed_tokens", True)
    with rejected(ArgumentError, "head: expected 16bit, or int8-tied", "model.embed_tokens.weight"):
        select(tied, head="int8")


def test_learned_positions_and_norms_cannot() -> None:
    for pattern in ("embed_positions", "layer_norm"):
        with rejected(ArgumentError, "quantize matches no matrix", pattern, "embed_tokens"):
            select(OPT, quantize=(pattern,))
    assert told(select(OPT))[1] == "model.decoder.embed_positions.weight"


def test_patterns_that_could_change_nothing_are_refused() -> None:
    Patterns(("b$", "^a"), ("c",)).check(["a.b"], ["c.d"])
    with rejected(ArgumentError, "keep matches no linear", "such as a.b", "'^b'"):
        Patterns(keep=("a", "^b")).check(["a.b"], ["b"])
    with rejected(ArgumentError, "quantize matches no matrix", "no pattern: there are none", "'c'"):
        Patterns(quantize=("c",)).check(["c"], [])
    Patterns().check([], [])


def test_patterns_are_found_anywhere() -> None:
    assert matches(("x", "b.d"), "a.b.d")
    assert not matches(("^b", "d.$"), "a.b.d")
    assert not matches((), "a")


def test_biases_go_with_their_linear() -> None:
    group = next(item for item in select(OPT).items if isinstance(item, Group))
    assert [x.bias.name for x in group.linears if x.bias] == [
        f"model.decoder.layers.0.self_attn.{r}_proj.bias" for r in "qkv"
    ]


def test_a_bias_that_the_config_does_not_announce_goes_along_with_a_note() -> None:
    name, other = f"{A.format(1)}o_proj.bias", "model.norm.bias"
    found = select(changes={name: ("F32", (64,)), other: ("F16", (64,))})
    biases = [x.bias for item in found.items if isinstance(item, Group) for x in item.linears if x.bias]  # fmt: skip
    assert [bias.name for bias in biases] == [name]
    assert found.notes == (
        f"{name} and 1 more: not mentioned in the config; kept but not used (transformers ignores them too)",
    )
    assert told(found)[-2:] == [other, "lm_head.weight"]
    with rejected(ShapeError, name, "[64]", "[63]"):
        select(changes={name: ("F32", (63,))})


def test_what_no_module_has_comes_last() -> None:
    found = select(changes={"model.extra.weight": ("BF16", (3, 4)), "a.position_ids": ("I64", (9,))})  # fmt: skip
    assert found.items[-2:] == (
        Kept("model.extra.weight", stored("model.extra.weight", "BF16", 3, 4), "matches no rule"),
        Kept("a.position_ids", stored("a.position_ids", "I64", 9), "matches no rule"),
    )
    assert (found.skipped, found.notes) == ({}, ())


def test_layers_beyond_the_configs_are_kept_with_a_note() -> None:
    names = ["model.layers.2.x.weight", "model.layers.10.y.weight", "model.layers.a.weight", "model.layers.1.z.weight"]  # fmt: skip
    found = select(changes=dict.fromkeys(names, ("F16", (2,))))
    assert told(found)[-4:] == names
    assert found.notes == (
        f"{names[0]} and 1 more: in layers beyond the config's 2; kept but not used (transformers ignores them too)",
    )


SHARING: dict[str, Any] = {
    "model_type": "gemma4_text", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 24, "vocab_size": 90, "vocab_size_per_layer_input": 90,
    "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 64,
}  # fmt: skip


def test_keys_of_layers_that_use_an_earlier_ones_are_kept_with_a_note() -> None:
    """As releases of Gemma 3n and 4 have them; what other layers have is not named."""
    names = [f"{A.format(i)}{name}.weight" for i in (2, 3) for name in ("k_proj", "v_proj", "k_norm")]  # fmt: skip
    found = select(SHARING, dict.fromkeys(names, ("F16", (32,))))
    assert told(found)[-6:] == names
    assert found.notes == (
        f"{names[0]} and 5 more: in layers that attend to keys of an earlier one; kept but not used (transformers ignores them too)",
    )
    assert select(SHARING).notes == ()


def test_predictors_of_several_tokens_are_kept_with_a_note() -> None:
    names = ["mtp.fc.weight", "model.mtp.layers.0.x.weight", "model.language_model.mtp.y", "model.smtp.z", "amtp.z"]  # fmt: skip
    found = select(changes=dict.fromkeys(names, ("F16", (2,))))
    assert told(found)[-5:] == names
    assert found.notes == (
        f"{names[0]} and 2 more: for predicting several tokens at once; kept but not used (transformers ignores them too)",
    )


def test_a_head_that_is_tied_is_left_out() -> None:
    tied = LLAMA | {"tie_word_embeddings": True}
    source = checkpoint(tied, {"lm_head.weight": ("F16", (96, 64))})
    names = set(source.tensors) - {"lm_head.weight"}  # what a caller that compared the two passes
    found = select_modules(source, read_architecture(tied, names), Patterns())
    assert found.skipped == {"lm_head.weight": "tied to the token embedding"}


def test_what_a_family_computes_is_left_out() -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert select(changes={name: ("F32", (8,))}).skipped == {name: COMPUTED}


def test_what_is_missing_or_has_another_shape() -> None:
    name = f"{A.format(0)}k_proj.weight"
    with rejected(MissingTensorError, name):
        select(changes={name: None})
    with rejected(ShapeError, name, "[32, 64]", "[64, 32]"):
        select(changes={name: ("F16", (64, 32))})
    with rejected(UnsupportedDtypeError, name, "I32"):
        select(changes={name: ("I32", (32, 64))})


GPT2 = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 32}  # fmt: skip


def test_linears_that_are_stored_turned() -> None:
    groups = [item for item in select(GPT2).items if isinstance(item, Group)]
    assert {x.weight.transposed for g in groups for x in g.linears} == {True}
    assert groups[0].linears[0].weight.shape == (192, 64)


FP8 = {"w.weight": ("F8_E4M3", (128, 128)), "w.weight_scale": ("F32", (1,)), "b.weight": ("F16", (4, 4))}  # fmt: skip


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_floats_are_kept_as_they_are(dtype: str) -> None:
    for name in ("a.weight", "a.bias", "a"):
        tensor = stored(name, dtype, 2, 3)
        assert keep(checkpoint(), tensor, "norm") == Kept(name, tensor, "norm")


@pytest.mark.parametrize("dtype", ["I8", "I64", "U8", "U32", "BOOL"])
def test_integers_are_kept_unless_they_are_a_weight(dtype: str) -> None:
    for name in ("a.position_ids", "weight", "a.my_weight"):
        assert keep(checkpoint(), stored(name, dtype, 4), "x").source == stored(name, dtype, 4)
    with rejected(UnsupportedDtypeError, "a.weight", dtype):
        keep(checkpoint(), stored("a.weight", dtype, 4, 4), "x")


def test_fp8_is_widened_with_its_scales() -> None:
    source = checkpoint(LLAMA, FP8)
    kept = keep(source, source.tensors["w.weight"], "x")
    assert isinstance(kept.source, Matrix)
    assert kept.source.scales is not None
    assert kept.source.scales.tensor.name == "w.weight_scale"
    with rejected(CompanionError, "v.weight"):
        keep(source, stored("v.weight", "F8_E4M3", 128, 128), "x")
    with rejected(UnsupportedDtypeError, "c.x", "C64"):
        keep(source, stored("c.x", "C64", 2), "x")


def test_scales_of_fp8_are_left_out() -> None:
    source = checkpoint(LLAMA, FP8)
    reason = why_skipped(source, source.tensors["w.weight_scale"])
    assert reason is not None
    assert "multiplied into it" in reason
    for name in ("w.input_scale", "a.k_scale", "a.prob_scale", "x.activation_scale"):
        assert "activations" in str(why_skipped(source, stored(name, "F32", 1)))
        assert why_skipped(checkpoint(), stored(name, "F32", 1)) is None  # no FP8 in it
    for name in ("w.weight", "w.weight_scales", "w.input_scales", "b.weight"):
        assert why_skipped(source, stored(name, "F16", 1)) is None


@pytest.mark.parametrize(
    "name",
    [
        "h.0.attn.masked_bias", "masked_bias", "a.attn_mask", "a.attention_mask", "a.causal_mask", "a.inv_freq", "a.original_inv_freq",
        "a.rotary_emb.cos_cached", "a.rotary_emb.sin_cached",
    ],
)  # fmt: skip
def test_buffers_are_left_out(name: str) -> None:
    assert why_skipped(checkpoint(), stored(name, "F32", 8)) == COMPUTED
    for other in (f"{name}x", f"a.x{name.rpartition('.')[2]}.weight", f"{name}.weight"):
        assert why_skipped(checkpoint(), stored(other, "F32", 8)) is None


@pytest.mark.parametrize(
    ("name", "shape", "mask"),
    [
        ("h.0.attn.bias", (1, 1, 32, 32), True), ("h.0.attn.bias", (1, 32, 32), True),
        ("h.0.attn.bias", (32, 32), False), ("h.0.attn.bias", (1, 1, 32, 16), False), ("h.0.attn.bias", (1, 2, 32, 32), False),
        ("h.0.attn.bias", (32,), False), ("h.0.attn.weight", (1, 1, 3, 3), False), ("h.0.attn_bias", (1, 1, 3, 3), False),
    ],
)  # fmt: skip
def test_masks_of_the_first_gpts_by_their_shape(name: str, shape: tuple[int, ...], mask: bool) -> None:  # fmt: skip
    assert why_skipped(checkpoint(), stored(name, "U8", *shape)) == (COMPUTED if mask else None)
