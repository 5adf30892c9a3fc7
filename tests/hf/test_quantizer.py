"""``from_pretrained`` on converted folders: the runtime's logits, and what a model is saved as."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

import int8conv
import int8conv.hf
from int8conv.errors import (
    ArgumentError,
    JsonFileError,
    UnknownVersionError,
    UnsupportedFeatureError,
)
from int8conv.hf import set_mode
from int8conv.hf.experts import KEEPS_EXPERTS
from int8conv.hf.linear import int8_linears
from int8conv.hf.quantizer import dense
from int8conv.kernels.dispatch import Mode

from ..formats.damage import edit_json
from .models import CONFIGS, DEQUANTIZES, EXPERTS, convert, load, logits, token_ids

Family = Callable[[str], Path]

TOLERANCE = 1e-5
IN_ANOTHER_ORDER = ("falcon", "gpt_oss")
"""Families whose attention transformers computes by other operators than the runtime: hidden states differ in their last bits."""
ROUNDED = 1e-3


def greedy(own: int8conv.Model, ids: Tensor, count: int) -> list[int]:
    """Without the runtime's own loop, which asks for a tokenizer."""
    for _ in range(count):
        ids = torch.cat([ids, own.logits(ids)[:, -1:].argmax(-1)], dim=1)
    return ids[0, -count:].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family(name: str, family: Family, tmp_path: Path) -> None:
    """Logits in every mode, greedy text, saved and loaded again, dequantized."""
    folder = family(name)
    if name in EXPERTS and not KEEPS_EXPERTS:
        with pytest.raises(UnsupportedFeatureError, match=r"too old to dequantize|in one tensor"):
            load(folder)
        return
    model = load(folder)
    ids = token_ids()
    found = {}
    modes: tuple[Mode | None, ...] = ("w8a8", None, "w8a16")
    for mode in modes:
        set_mode(model, mode)
        own = int8conv.load(folder, mode=mode)
        found[mode] = logits(model, ids)
        # without VNNI, more than 16 tokens are rounded to 16 bits then, some to the next code if inputs differ in their last bits
        within = ROUNDED if mode is None and name in IN_ANOTHER_ORDER else TOLERANCE
        assert (found[mode] - own.logits(ids)).abs().max() <= within, mode
        few = ids[:1, :12]
        assert (logits(model, few) - own.logits(few)).abs().max() <= TOLERANCE, mode
    assert found["w8a16"].std() > 0.1
    text = model.generate(ids[:1], max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert text.tolist() == greedy(own, ids[:1], len(text))
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    set_mode(again, "w8a16")
    assert len(int8_linears(again)) == len(int8_linears(model)) > 7
    assert torch.equal(logits(again, ids), found["w8a16"])
    plain = model.dequantize(dtype=torch.float32)
    assert not int8_linears(plain)
    assert (logits(plain, ids) - found["w8a16"]).abs().max() <= 1e-4
    plain.save_pretrained(tmp_path / "plain")
    assert (logits(load(tmp_path / "plain"), ids) - found["w8a16"]).abs().max() <= 1e-4


def test_what_is_saved_has_the_bytes_that_were_read(family: Family, tmp_path: Path) -> None:
    load(family("llama")).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as saved:
        names = set(saved.keys())
        for shard in family("llama").glob("*.safetensors"):
            with safe_open(shard, "pt") as read:
                for name in read.keys():  # noqa: SIM118
                    kind = name.rpartition(".")[2]
                    if (
                        kind.startswith(("weight_scale", "outlier_"))
                        or read.get_slice(name).get_dtype() == "I8"
                    ):
                        assert torch.equal(read.get_tensor(name), saved.get_tensor(name))
                        names.remove(name)
    assert not [name for name in names if "scale" in name or "outlier" in name]
    config, before = (
        json.loads((f / "config.json").read_text())["quantization_config"]
        for f in (tmp_path, family("llama"))
    )
    assert config == before


@pytest.mark.skipif(not DEQUANTIZES, reason="of transformers 5.21 and newer")
def test_an_embedding_in_int8_is_dequantized(tmp_path: Path) -> None:
    folder = convert(
        "llama", tmp_path, {"tie_word_embeddings": True}, outliers="none", quantize=["embed_tokens"]
    )
    model = load(folder)
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    own = int8conv.load(folder, mode="w8a16")
    set_mode(model, "w8a16")
    found = logits(model, token_ids())
    assert (found - own.logits(token_ids())).abs().max() <= TOLERANCE
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    set_mode(again, "w8a16")
    assert torch.equal(logits(again, token_ids()), found)


@pytest.mark.skipif(not DEQUANTIZES, reason="of transformers 5.21 and newer")
def test_some_experts_in_16_bits(tmp_path: Path) -> None:
    """All are in one tensor then: those in int8 are dequantized, unless transformers knows no names of single experts."""
    some = {"outliers": "none", "keep": [r"layers\.1\..*experts\.2\."]}
    folder = convert("mixtral", tmp_path / "a", **some)
    model = load(folder)
    assert len(int8_linears(model)) == 8  # of attention
    set_mode(model, "w8a16")
    own = int8conv.load(folder, mode="w8a16").logits(token_ids())
    assert (logits(model, token_ids()) - own).abs().max() <= TOLERANCE
    with pytest.raises(UnsupportedFeatureError, match=r"experts\.0\..*in one tensor"):
        load(convert("gpt_oss", tmp_path / "b", **some))


def test_the_text_part_of_a_multimodal_model(tmp_path: Path) -> None:
    """Gemma 3 with its tower of images, under both names that transformers has for it."""
    torch.manual_seed(0)
    text = CONFIGS["gemma3_text"] | {"model_type": "gemma3_text"}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4,
                                  image_token_index=90, boi_token_index=91, eoi_token_index=92)  # fmt: skip
    source = AutoModelForImageTextToText.from_config(config)
    for parameter in source.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    source.half().save_pretrained(tmp_path / "source")
    int8conv.convert_checkpoint(tmp_path / "source", tmp_path / "int8")
    ids = token_ids(1, 12) % 90
    own = int8conv.load(tmp_path / "int8", mode="w8a16").logits(ids)
    for kind in (AutoModelForImageTextToText, AutoModelForCausalLM):
        model = kind.from_pretrained(tmp_path / "int8", dtype=torch.float32)
        set_mode(model, "w8a16")
        assert len(int8_linears(model)) == 14
        assert (logits(model, ids) - own).abs().max() <= TOLERANCE
        made = model.generate(ids, max_new_tokens=4, do_sample=False)[0, 12:].tolist()
        assert made == greedy(int8conv.load(tmp_path / "int8", mode="w8a16"), ids, len(made))


def test_a_head_in_int8(tmp_path: Path) -> None:
    folder = convert("llama", tmp_path, outliers="none", head="int8")
    model = load(folder)
    assert "lm_head" in int8_linears(model)
    own = int8conv.load(folder).logits(token_ids())
    assert (logits(model, token_ids()) - own).abs().max() <= TOLERANCE


def test_every_tensor_finds_its_place(family: Family) -> None:
    """Padding is not reported as unexpected, nor a companion as missing."""
    for name in ("llama", "gpt2"):
        _, info = AutoModelForCausalLM.from_pretrained(family(name), output_loading_info=True)
        assert not any(info.values()), info


def test_config_and_shards_are_enough_and_a_manifest_is_too(family: Family, tmp_path: Path) -> None:
    expected = logits(load(family("llama")), token_ids())
    folder = Path(shutil.copytree(family("llama"), tmp_path / "copy"))
    (folder / "int8conv.json").rename(tmp_path / "manifest")
    assert torch.equal(logits(load(folder), token_ids()), expected)
    edit_json(folder / "config.json", lambda config: config["quantization_config"].pop("groups"))
    with pytest.raises(
        JsonFileError, match=r"no .groups. in quantization_config, and no int8conv\.json"
    ):
        load(folder)
    (tmp_path / "manifest").rename(folder / "int8conv.json")
    (folder / "model.safetensors.index.json").read_text()
    refreshed = load(folder)
    assert torch.equal(logits(refreshed, token_ids()), expected)


def test_malformed_sections_are_refused_in_a_line(family: Family, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family("llama"), tmp_path / "copy"))
    for change, error, text in (
        ({"version": 2}, UnknownVersionError, "unknown format version"),
        ({"version": 1, "mode": "fast"}, ArgumentError, "mode"),
        ({"mode": None, "groups": [{}]}, JsonFileError, "'linears'"),
    ):
        edit_json(
            folder / "config.json", lambda config, c=change: config["quantization_config"].update(c)
        )
        with pytest.raises(error, match=text) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_a_mode_may_come_from_the_config(family: Family) -> None:
    config = AutoConfig.from_pretrained(family("llama"))
    config.quantization_config["mode"] = "w8a8"
    model = AutoModelForCausalLM.from_pretrained(family("llama"), config=config)
    assert {linear.mode for linear in int8_linears(model).values()} == {"w8a8"}


def test_other_heads_and_none(family: Family) -> None:
    body = AutoModel.from_pretrained(family("llama"), dtype=torch.float32)
    whole = load(family("llama"))
    with torch.no_grad():
        hidden = whole.model(token_ids()).last_hidden_state
        assert torch.equal(body(token_ids()).last_hidden_state, hidden)
    classifier = AutoModelForSequenceClassification.from_pretrained(family("llama"))
    assert len(int8_linears(classifier)) == len(int8_linears(whole))


def test_batches_padded_on_the_left_and_a_static_cache(family: Family) -> None:
    model = load(family("llama"))
    set_mode(model, "w8a16")
    ids = token_ids(2, 9)
    options = {"max_new_tokens": 6, "do_sample": False}
    alone = [
        model.generate(ids[:1], **options)[0, 9:],
        model.generate(ids[1:, 4:], **options)[0, 5:],
    ]
    ids[1, :4], mask = 0, torch.ones_like(ids)
    mask[1, :4] = 0
    for cache in ({}, {"cache_implementation": "static", "disable_compile": True}):
        found = model.generate(ids, attention_mask=mask, **options, **cache)[:, 9:]
        assert [row.tolist() for row in found] == [row.tolist() for row in alone]


def test_16_bit_activations(family: Family) -> None:
    model = AutoModelForCausalLM.from_pretrained(family("llama"), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    (linear, *_) = int8_linears(model).values()
    assert linear.weight_scale.dtype == torch.float32
    assert linear.outlier_weight is not None
    assert linear.outlier_weight.dtype == torch.float16
    found = logits(model, token_ids())
    assert found.dtype == torch.bfloat16
    expected = logits(load(family("llama")), token_ids())
    error = (found.float() - expected).square().mean().sqrt()
    assert error < 2**-6 * expected.std()


@pytest.mark.parametrize(
    "device_map",
    [
        "auto",
        {
            "model.embed_tokens": "cpu",
            "model.layers.0": "cpu",
            "model.layers.1": "disk",
            "model.norm": "cpu",
            "model.rotary_emb": "cpu",
            "lm_head": "cpu",
        },
    ],
    ids=["auto", "disk"],
)
def test_placing_and_offloading(device_map: object, family: Family, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = load(family("llama"), device_map=device_map, offload_folder=tmp_path)
    assert torch.equal(logits(model, token_ids()), logits(load(family("llama")), token_ids()))


def test_a_dense_form_is_of_the_class_that_was_there(family: Family) -> None:
    for name, kind in (("gpt2", "Conv1D"), ("opt", "Linear")):
        (linear, *_) = int8_linears(load(family(name))).values()
        found = dense(linear)
        assert type(found).__name__ == kind
        x = torch.randn(3, linear.in_features)
        linear.mode = "w8a16"
        torch.testing.assert_close(found(x), linear(x), rtol=1e-5, atol=1e-5)


def test_the_model_compiles_in_one_piece(family: Family) -> None:
    model = load(family("llama"))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        found = compiled(token_ids(), use_cache=False).logits
    torch.testing.assert_close(found, logits(model, token_ids()), rtol=1e-5, atol=1e-5)
