"""Checkpoints of families that the runtime does not know, as transformers writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.options import ConvertOptions
from int8conv.convert.outliers.selection import Group, Kept
from int8conv.convert.source import open_source
from int8conv.errors import ArgumentError, UnsupportedModelError
from int8conv.formats.hub.download import resolve
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.summary import inspect_folder
from int8conv.formats.safetensors.stored import read_array

from ...checkpoints import LLAMA, edit_config, put_fp8, random_tensors, write_checkpoint

_SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "head_dim": 16, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
_EXPERTS = {
    "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
}  # fmt: skip
_GPT2 = {
    "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def transformers_checkpoint(folder: Path, family: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """A random model, written by transformers; its tensors as stored."""
    torch.manual_seed(0)
    auto = AutoModel if family in ("bert", "t5") else AutoModelForCausalLM
    auto.from_config(AutoConfig.for_model(family, **config)).half().save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def dequantized(folder: Path) -> dict[str, Tensor]:
    """The weight that each quantized linear stands for, and its row scales."""
    weights = {}
    for path, linear in open_converted(folder).linears.items():
        codes = torch.from_numpy(read_array(linear.weight).astype(np.float32))[..., 0]
        weights[path] = codes * torch.from_numpy(read_array(linear.scale).copy())[:, None]
    return weights


def check_close(found: Tensor, expected: Tensor) -> None:
    """Within half a step of each row."""
    step = expected.float().abs().amax(dim=1, keepdim=True) / 127
    assert ((found - expected.float()).abs() <= step * 0.501).all()


# features that the runtime refuses in known families, so that names and shapes decide
CASES: dict[str, tuple[str, dict[str, Any], int, Callable[[str, Tensor], dict[str, Tensor]]]] = {
    "GPT-2's Conv1D": ("gpt2", _GPT2 | {"scale_attn_by_inverse_layer_idx": True}, 8, lambda p, t: {p: t.t()}),
    "experts one by one": ("mixtral", _SIZES | _EXPERTS | {"hidden_act": "relu6"}, 2 * (4 + 4 * 3), lambda p, t: {p: t}),
    "a stack of experts, [in, out]": (
        "gpt_oss", _SIZES | _EXPERTS | {"hidden_act": "relu6"}, 2 * (4 + 4 * 2),
        lambda p, t: {f"{p}.{i}": x.t() for i, x in enumerate(t)} if t.ndim == 3 else {p: t},
    ),
    "square experts, [in, out]": (
        "gpt_oss", _SIZES | _EXPERTS | {"intermediate_size": 64, "hidden_act": "relu6"}, 2 * (4 + 4 * 2),
        lambda p, t: {f"{p}.{i}": x.t() for i, x in enumerate(t)} if t.ndim == 3 else {p: t},
    ),
    "a stack of experts, [out, in]": (
        "granitemoe", _SIZES | _EXPERTS | {"hidden_act": "relu6"}, 2 * (4 + 4 * 2),
        lambda p, t: {f"{p}.{i}": x for i, x in enumerate(t)} if t.ndim == 3 else {p: t},
    ),
    "an encoder": (
        "bert", {k: _SIZES[k] for k in _SIZES if "head_dim" not in k}, 2 * 6, lambda p, t: {p: t},
    ),
    "encoder and decoder": (
        "t5", {"d_model": 64, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 128, "d_kv": 16},
        2 * 6 + 2 * 10, lambda p, t: {p: t},
    ),
    "fused projections": ("phi3", _SIZES | {"hidden_act": "relu6"}, 2 * 4, lambda p, t: {p: t}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_what_transformers_writes(tmp_path: Path, case: str) -> None:
    family, config, count, linears_of = CASES[case]
    stored = transformers_checkpoint(tmp_path / "source", family, config)
    report = convert_checkpoint(tmp_path / "source", tmp_path / "out")
    assert report.quantized == count
    assert report.outlier_columns == 0
    assert "chosen by names and shapes" in report.notes[0]
    found = dequantized(tmp_path / "out")
    assert len(found) == count
    checked = set()
    for name, tensor in stored.items():
        for path, expected in linears_of(name.removesuffix(".weight"), tensor).items():
            if path in found:
                check_close(found[path], expected)
                checked.add(path)
    assert checked == set(found)
    kept = {t.name: read_array(t) for t in open_converted(tmp_path / "out").others()}
    for name, array in kept.items():
        if "padding" not in name:
            np.testing.assert_array_equal(array, stored[name].numpy())


@pytest.mark.filterwarnings("ignore")
def test_linears_that_share_an_input_are_groups(tmp_path: Path) -> None:
    transformers_checkpoint(tmp_path, "gpt_oss", _SIZES | _EXPERTS | {"hidden_act": "relu6"})
    groups = [x for x in open_source(resolve(tmp_path), ConvertOptions()).selection.items if isinstance(x, Group)]  # fmt: skip
    names = [[linear.path.rpartition("layers.0.")[2] for linear in g.linears] for g in groups[:4]]
    assert names == [
        [f"mlp.experts.down_proj.{i}" for i in range(4)],
        [f"mlp.experts.gate_up_proj.{i}" for i in range(4)],
        ["self_attn.o_proj"],
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    ]


def unknown(folder: Path, tensors: dict[str, Tensor], **options: Any) -> tuple[set[str], set[str]]:
    """Paths of the linears and names of the kept tensors of an unknown family's checkpoint."""
    write_checkpoint(folder, {"model_type": "new", "hidden_size": 64}, tensors)
    items = open_source(resolve(folder), ConvertOptions(**options)).selection.items
    linears = {x.path for item in items if isinstance(item, Group) for x in item.linears}
    return linears, {item.name for item in items if isinstance(item, Kept)}


def test_names_that_do_not_mean_a_linear(tmp_path: Path) -> None:
    square = torch.zeros(64, 64).half()
    kept = {
        "embed.weight", "layers.0.norm.weight", "layers.0.pre_norm.weight", "layers.0.router.weight", "head.weight",
        "layers.0.gate.weight", "layers.0.lora_a.weight", "layers.0.conv1d.weight", "layers.0.table",
        "blocks.0.wpe.weight", "layers.0.embed_positions.weight", "layers.0.relative_attention_bias.weight",
    }  # fmt: skip
    tensors = {name: square.clone() for name in kept | {"layers.0.gate_proj.weight", "h.1.weight"}}
    tensors["layers.0.narrow.weight"] = torch.zeros(64, 31).half()
    tensors["layers.0.position_ids"] = torch.zeros(64, dtype=torch.int64)
    assert unknown(tmp_path, tensors) == (
        {"layers.0.gate_proj", "h.1"},
        kept | {"layers.0.narrow.weight", "layers.0.position_ids"},
    )


# as public models call them
CHOOSING = {
    "model.language_model.layers.0.router.proj": (128, 64),
    "model.layers.0.block_sparse_moe.router.layer": (40, 64),
    "model.layers.0.mlp.gate.router_mlp.0": (64, 64),
    "model.layers.0.mlp.gate.wg": (64, 64),
    "model.layers.0.mlp.router": (64, 64),
    "model.layers.0.mlp.gate": (64, 64),
    "model.layers.0.feed_forward.expert_gate": (64, 64),
    "model.layers.61.shared_head.head": (128, 64),
    "decoder.lm_heads.0": (128, 64),
    "talker.code_predictor.lm_head.0": (128, 64),
    "medusa_head.0.1": (128, 64),
    "decoder.model.decoder.embed_tokens.0": (128, 64),
    "talker.code_predictor.model.codec_embedding.0": (128, 64),
    "model.layers.0.linear_attn.in_proj_a": (64, 64),
    "model.layers.0.linear_attn.in_proj_b": (64, 64),
    "model.layers.0.linear_attn.in_proj_ba": (64, 64),
    "model.layers.0.self_attn.indexer.weights_proj": (64, 64),
    "model.layers.0.self_attn.b_proj": (64, 64),
    "model.layers.0.self_attn.f_a_proj": (64, 64),
    "model.layers.0.self_attn.g_b_proj": (64, 64),
    "backbone.layers.0.mixer.x_proj": (64, 64),
    "backbone.layers.0.mixer.dt_proj": (64, 64),
    "model.layers.0.self_attn.q_proj.lora_A.default": (32, 64),
    "model.layers.0.adapter.up": (64, 64),
}
LINEARS = {
    "model.layers.0.mlp.proj_up_gate": (64, 64),
    "model.layers.0.mlp.linear_gate": (64, 64),
    "model.layers.0.self_attn.output_gate": (64, 64),
    "model.layers.0.self_attn.q_a_proj": (64, 64),
    "model.layers.0.self_attn.kv_a_proj_with_mqa": (64, 64),
    "model.layers.61.eh_proj": (64, 128),
    "model.layers.1.ffn.gate": (96, 64),
    "model.layers.1.ffn.up": (96, 64),
    "model.layers.0.linear_attn.in_proj_qkvz": (64, 64),
    "backbone.layers.0.mixer.in_proj": (64, 64),
}


def test_what_chooses_looks_up_or_recurs_stays(tmp_path: Path) -> None:
    shapes = CHOOSING | LINEARS
    tensors = {f"{path}.weight": torch.zeros(shape).half() for path, shape in shapes.items()}
    assert unknown(tmp_path, tensors) == (set(LINEARS), {f"{path}.weight" for path in CHOOSING})


SENSES = (
    "model.visual.blocks.0.attn.qkv", "model.vision_tower.layers.0.mlp.fc1", "audio_tower.layers.0.fc1",
    "multi_modal_projector.layers.0", "visual.merger.mlp.0",
)  # fmt: skip


def test_vision_and_audio_stay_and_it_is_said(tmp_path: Path) -> None:
    tensors = {f"{path}.weight": torch.zeros(64, 64).half() for path in SENSES}
    text = {"model.layers.0.q_proj.weight": torch.zeros(320, 64).half()}
    assert unknown(tmp_path / "a", tensors | text) == ({"model.layers.0.q_proj"}, set(tensors))
    notes = open_source(resolve(tmp_path / "a"), ConvertOptions()).notes
    assert notes[1:] == (
        "vision, audio and projectors stay in 16 bits (50% of all bytes): use --quantize REGEX for int8",
    )
    linears, _ = unknown(tmp_path / "b", tensors | text, quantize=("visual",))
    assert linears == {"model.layers.0.q_proj", SENSES[0], SENSES[-1]}
    linears, kept = unknown(tmp_path / "c", tensors)  # there is nothing else
    assert (linears, kept) == (set(SENSES), set())


def test_the_head_of_an_unknown_family_has_to_be_named(tmp_path: Path) -> None:
    tensors = {"layers.0.proj.weight": torch.zeros(64, 64).half(), "lm_head.weight": torch.zeros(96, 64).half()}  # fmt: skip
    with pytest.raises(ArgumentError, match=r"head: expected 16bit.*name it with --quantize"):
        unknown(tmp_path, tensors, head="int8")


def test_a_stack_that_could_be_either_way_is_kept_and_named(tmp_path: Path) -> None:
    tensors = {
        "layers.0.experts.up": torch.zeros(2, 64, 64).half(),
        "layers.0.experts.down": torch.zeros(2, 48, 96).half(),
        "layers.1.experts.up": torch.zeros(2, 64, 64).half(),
        "layers.0.proj.weight": torch.zeros(64, 64).half(),
    }
    linears, kept = unknown(tmp_path, tensors)
    assert linears == {"layers.0.proj"}
    assert kept == set(tensors) - {"layers.0.proj.weight"}
    why = "of all bytes): by name and shape it may not be a linear"
    assert open_source(resolve(tmp_path), ConvertOptions()).notes[1:] == (
        f"layers.*.experts.down stays in 16 bits (31% {why}",
        f"layers.*.experts.up stays in 16 bits (55% {why}",
    )


@pytest.mark.parametrize("turned", [False, True])
def test_a_square_stack_lies_as_its_sibling_does(tmp_path: Path, turned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(3, 64, 64, generator=generator).half()
    down = torch.randn(3, *((32, 64) if turned else (64, 32)), generator=generator).half()
    stacks = {"layers.0.experts.gate_up_proj": up, "layers.0.experts.down_proj": down}
    write_checkpoint(tmp_path / "source", {"model_type": "new", "hidden_size": 64}, stacks)
    convert_checkpoint(tmp_path / "source", tmp_path / "out", outliers="none")
    found = dequantized(tmp_path / "out")
    assert len(found) == 6
    for path, stack in stacks.items():
        for part, matrix in enumerate(stack):
            check_close(found[f"{path}.{part}"], matrix.t() if turned else matrix)


def test_the_experts_of_dbrx_are_one_matrix_without_a_suffix(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    config = {"model_type": "dbrx", "d_model": 64, "ffn_config": {"moe_num_experts": 4}}
    stacks = {
        f"transformer.blocks.0.ffn.experts.mlp.{name}": torch.randn(4 * 96, 64, generator=generator).half()
        for name in ("w1", "v1", "w2")
    }  # fmt: skip
    router = {"transformer.blocks.0.ffn.router.layer.weight": torch.ones(4, 64).half()}
    write_checkpoint(tmp_path / "source", config, stacks | router)
    convert_checkpoint(tmp_path / "source", tmp_path / "out", outliers="none")
    found = dequantized(tmp_path / "out")
    assert len(found) == 12
    for path, stack in stacks.items():
        for part, matrix in enumerate(stack.view(4, 96, 64)):
            check_close(found[f"{path}.{part}"], matrix.t() if path.endswith("w2") else matrix)


def test_a_stack_whose_parts_would_take_a_name_is_kept(tmp_path: Path) -> None:
    tensors = {
        "layers.0.experts.up": torch.zeros(2, 96, 64).half(),
        "layers.0.experts.up.0.weight": torch.zeros(64, 64).half(),
    }
    assert unknown(tmp_path, tensors) == ({"layers.0.experts.up.0"}, {"layers.0.experts.up"})


def test_a_stack_without_a_byte_is_no_linear(tmp_path: Path) -> None:
    """It may name any number of experts, in a header of a few bytes."""
    empty = {"model.layers.0.mlp.experts.gate_up": torch.empty(1_000_000_000, 0, 64)}
    config, tensors = LLAMA | {"model_type": "unknown"}, random_tensors(LLAMA)
    source = write_checkpoint(tmp_path / "source", config, tensors | empty)
    opened = open_source(resolve(source), ConvertOptions())
    paths = [x.path for i in opened.selection.items if isinstance(i, Group) for x in i.linears]
    assert paths
    assert not any("experts" in path for path in paths)


def test_a_bias_that_does_not_fit_keeps_its_linear(tmp_path: Path) -> None:
    """A reader of the format takes it for the linear's."""
    tensors = {f"layers.{i}.proj.weight": torch.ones(64, 32).half() for i in range(3)}
    tensors |= {
        "layers.0.proj.bias": torch.ones(1, 64).half(),
        "layers.1.proj.bias": torch.ones(64),
    }
    write_checkpoint(tmp_path / "source", {"model_type": "new"}, tensors)
    convert_checkpoint(tmp_path / "source", tmp_path / "out", outliers="none")
    assert set(open_converted(tmp_path / "out").linears) == {"layers.1.proj", "layers.2.proj"}


def test_masks_and_other_buffers_are_left_out(tmp_path: Path) -> None:
    mask = torch.full((8, 8), float("-inf")).triu(1).half()
    buffers = {
        "text_model.attn_mask": mask,
        "transformer.h.0.attn.attention.bias": torch.ones(1, 1, 8, 8).tril().bool(),
        "transformer.h.0.attn.attention.masked_bias": torch.tensor(-1e9),
        "layers.0.rotary_emb.inv_freq": torch.ones(4),
    }
    tensors = buffers | {"layers.0.proj.weight": torch.ones(64, 64).half()}
    write_checkpoint(tmp_path / "source", {"model_type": "new"}, tensors)
    convert_checkpoint(tmp_path / "source", tmp_path / "out", outliers="none")
    opened = open_converted(tmp_path / "out")
    assert opened.manifest.skipped == dict.fromkeys(buffers, "computed, not learned")
    assert set(opened.linears) == {"layers.0.proj"}


def test_layer_numbers_of_any_length(tmp_path: Path) -> None:
    tensors = {f"layers.{'9' * 5000}.proj.weight": torch.ones(64, 64).half()}
    write_checkpoint(tmp_path / "source", {"model_type": "new"}, tensors)
    convert_checkpoint(tmp_path / "source", tmp_path / "out", outliers="none")
    assert inspect_folder(open_converted(tmp_path / "out")).total.tensors == 2


def test_layers_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.proj.weight": torch.zeros(64, 64).half() for i in range(11)}
    tensors |= {n: torch.zeros(96, 64).half() for n in ("lm_head.weight", "model.embed.weight")}
    write_checkpoint(tmp_path / "source", {"model_type": "new"}, tensors)
    convert_checkpoint(tmp_path / "source", tmp_path / "out")
    names = [
        n for n in open_converted(tmp_path / "out").checkpoint.tensors if n.endswith(".weight")
    ]
    assert names == [
        "model.embed.weight", *[f"layers.{i}.proj.weight" for i in range(11)], "lm_head.weight",
    ]  # fmt: skip


def test_patterns(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    q, head = "model.layers.0.self_attn.q_proj", "lm_head"
    options = {"keep": (q,), "quantize": ("lm_head$",), "exclude": (r"layers\.1\.",)}
    linears, kept = unknown(tmp_path / "a", tensors, **options)
    assert head in linears
    assert f"{q}.weight" in kept
    assert not any("layers.1." in name for name in linears | kept)
    linears, kept = unknown(tmp_path / "b", tensors, include=("mlp",))
    assert len(linears) == 6
    assert not kept
    for option in ("keep", "quantize", "include", "exclude"):
        with pytest.raises(ArgumentError, match=f"{option} matches no"):
            unknown(tmp_path / "c", tensors, **{option: ("nothing such",)})


def test_nothing_that_looks_like_a_linear(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no linear found"):
        unknown(tmp_path, {"a.weight": torch.zeros(64, 64).half()})


def test_fp8_of_an_unknown_family(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", dtype=torch.bfloat16)
    decoded = put_fp8(folder, "block")
    edit_config(folder, model_type="new")
    report = convert_checkpoint(folder, tmp_path / "out", keep=["layers.1.mlp.down"])
    weights = dequantized(tmp_path / "out")
    assert report.quantized == len(weights) == len(decoded) - 1
    for path, weight in weights.items():
        check_close(weight, decoded[f"{path}.weight"])
    opened = open_converted(tmp_path / "out")
    down = "model.layers.1.mlp.down_proj.weight"
    assert opened.checkpoint.tensor(down).dtype == "F16"
    expected = decoded[down].half().numpy()
    np.testing.assert_array_equal(read_array(opened.checkpoint.tensor(down)), expected)
    skipped = opened.manifest.skipped
    assert skipped[f"{down}_scale_inv"].startswith("scales of an FP8 weight")
    assert len(skipped) == len(decoded)
    assert not any("scale_inv" in name for name in opened.checkpoint.tensors)
