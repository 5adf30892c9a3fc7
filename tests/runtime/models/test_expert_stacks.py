"""Experts in stacks, as transformers holds them and as others write them: the same tensors, logits and bytes as experts one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import int8conv
from int8conv.errors import CompanionError, DuplicateTensorError, ShapeError
from int8conv.formats.hub.download import resolve
from int8conv.formats.safetensors.stored import read_array
from int8conv.formats.source.checkpoint import Checkpoint
from int8conv.formats.source.matrix import find_matrix
from int8conv.runtime.opening import open_unconverted
from int8conv.runtime.weights.mapping import read_matrix

from ..reference import TOLERANCE, dequantized_reference, logits, reference

_SIZES: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": None, "num_experts_per_tok": 2,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {"intermediate_size": 40, "num_local_experts": 3}),
    "mixtral, square": ("mixtral", {"intermediate_size": 64, "num_local_experts": 3}),
    "qwen2_moe": (
        "qwen2_moe",
        {"intermediate_size": 96, "num_experts": 3, "moe_intermediate_size": 40}
        | {"shared_expert_intermediate_size": 48, "mlp_only_layers": [0]},
    ),
    "olmoe": ("olmoe", {"intermediate_size": 40, "num_experts": 3}),
    "qwen3_moe, square": (
        "qwen3_moe",
        {"intermediate_size": 96, "num_experts": 3, "moe_intermediate_size": 32, "head_dim": 16},
    ),
}  # fmt: skip
_IDS = torch.randint(101, (2, 20), generator=torch.Generator().manual_seed(1))


def _write(name: str, folder: Path) -> Tensor:
    """One by one in ``folder/hub``, in stacks in ``folder/stacked``; gives the logits of transformers."""
    model_type, options = CONFIGS[name]
    model = reference(
        AutoConfig.for_model(model_type, **_SIZES, **options), folder / "hub", torch.float16
    )
    expected = logits(model, _IDS)
    model.to(torch.float16).save_pretrained(folder / "stacked", save_original_format=False)
    return expected


def opened_checkpoint(folder: Path) -> Checkpoint:
    return open_unconverted(resolve(folder)).checkpoint


@pytest.mark.parametrize("name", CONFIGS)
def test_as_transformers_holds_them(name: str, tmp_path: Path) -> None:
    expected = _write(name, tmp_path)
    assert any(t.ndim == 3 for t in load_file(tmp_path / "stacked" / "model.safetensors").values())
    ours = int8conv.load(tmp_path / "stacked")
    assert (ours.logits(_IDS) - expected).abs().max() <= TOLERANCE
    for form in ("hub", "stacked"):
        int8conv.convert_checkpoint(tmp_path / form, tmp_path / f"{form}-int8")
    one, other = (folder_bytes(tmp_path / f"{form}-int8") for form in ("hub", "stacked"))
    assert one == other
    assert int8conv.compare(tmp_path / "stacked-int8", tmp_path / "stacked").worst_sqnr_db
    assert int8conv.compare(tmp_path / "hub-int8", tmp_path / "stacked").worst_sqnr_db
    wide = dequantized_reference(tmp_path / "hub", tmp_path / "stacked-int8", tmp_path / "wide")
    converted = int8conv.load(tmp_path / "stacked-int8", mode="w8a16")
    assert (converted.logits(_IDS) - logits(wide, _IDS)).abs().max() <= TOLERANCE


def folder_bytes(folder: Path) -> list[tuple[str, bytes]]:
    """Shards, index and config: the manifest names its source."""
    paths = sorted(path for path in folder.iterdir() if path.name != "int8conv.json")
    return [(path.name, path.read_bytes()) for path in paths]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stacks")
    _write("mixtral", folder)
    return folder / "hub"


def rewrite(source: Path, folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    keys = json.loads((source / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(keys))
    return folder


def stacked(tensors: dict[str, Tensor], parent: str, suffix: str = "") -> dict[str, Tensor]:
    """Each of an expert's matrices in a stack of its own, below another module of the layer."""
    rest, stacks = {}, {}
    for name, tensor in tensors.items():
        before, mark, behind = name.partition(".block_sparse_moe.experts.")
        if mark:
            number, last, _ = behind.split(".")
            stacks.setdefault(f"{before}.{parent}.{last}{suffix}", {})[int(number)] = tensor
        else:
            rest[name] = tensor
    return rest | {k: torch.stack([v[n] for n in sorted(v)]) for k, v in stacks.items()}


@pytest.mark.parametrize("parent", ["block_sparse_moe.experts", "mlp.experts"])
@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_a_stack_for_each_matrix(hub: Path, tmp_path: Path, parent: str, suffix: str) -> None:
    """With and without a weight's suffix and the base model's prefix; values, names and offsets are those of the hub's form."""
    tensors = stacked(load_file(hub / "model.safetensors"), parent, suffix)
    if suffix:
        tensors = {name.removeprefix("model."): t for name, t in tensors.items()}
    opened = opened_checkpoint(rewrite(hub, tmp_path / "stacked", tensors))
    expected = opened_checkpoint(hub).tensors
    names = {name.removeprefix("model.") if suffix else name for name in expected}
    assert opened.tensors.keys() == names
    for name, tensor in opened.tensors.items():
        original = expected[name if name in expected else f"model.{name}"]
        assert (read_array(tensor) == read_array(original)).all()
        assert (tensor.dtype, tensor.shape) == (original.dtype, original.shape)


def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers holds them."""
    found = stacked(tensors, "mlp.experts")
    for layer in range(2):
        base = f"model.layers.{layer}.mlp.experts"
        gate, up = found.pop(f"{base}.w1"), found.pop(f"{base}.w3")
        found[f"{base}.gate_up_proj"] = torch.cat([gate, up], 1)
        found[f"{base}.down_proj"] = found.pop(f"{base}.w2")
    return found


@pytest.mark.parametrize("scales", ["row", "matrix", "stack"])
def test_fp8(hub: Path, tmp_path: Path, scales: str) -> None:
    """The scales go with their rows: the same weights as from FP8 experts one by one."""
    singles, stacks = {}, {}
    for name, tensor in fused(load_file(hub / "model.safetensors")).items():
        if tensor.ndim != 3:
            singles[name] = stacks[name] = tensor
            continue
        axes = {"row": (2,), "matrix": (1, 2), "stack": (1, 2)}[scales]
        scale = tensor.float().abs().amax(axes, keepdim=True) / 448
        codes = (tensor.float() / scale).to(torch.float8_e4m3fn)
        stacks[name] = codes
        stacks[f"{name}_scale"] = scale.flatten() if scales == "stack" else scale
        wide = codes.float() * scale
        singles[name] = wide
    opened = opened_checkpoint(rewrite(hub, tmp_path / "fp8", stacks))
    expected = opened_checkpoint(rewrite(hub, tmp_path / "f32", singles))
    count = 0
    for name, tensor in opened.tensors.items():
        if tensor.dtype == "F8_E4M3":
            found = read_matrix(find_matrix(opened, tensor))
            assert (found.numpy() == read_array(expected.tensors[name])).all()
            count += 1
    assert count == 2 * 3 * 3


def test_what_is_wrong_is_named(hub: Path, tmp_path: Path) -> None:
    tensors = load_file(hub / "model.safetensors")
    stacks = fused(tensors)
    name = "model.layers.1.mlp.experts.down_proj"
    turned = stacks | {name: stacks[name].mT.contiguous()}
    with pytest.raises(
        ShapeError, match=r"layers\.1\.mlp\.experts\.down_proj.*\[3, 64, 40\].*\[3, 40, 64\]"
    ):
        opened_checkpoint(rewrite(hub, tmp_path / "turned", turned))
    alone = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    with pytest.raises(DuplicateTensorError, match=r"experts\.2\.w2"):
        opened_checkpoint(rewrite(hub, tmp_path / "twice", stacks | {alone: tensors[alone]}))
    name = "model.layers.1.mlp.experts.gate_up_proj"
    codes = {k: v.to(torch.float8_e4m3fn) if k == name else v for k, v in stacks.items()}
    codes[f"{name}_scale_inv"] = torch.ones(3, 7, 1)
    with pytest.raises(CompanionError, match=r"gate_up_proj_scale_inv.*\[3, 7, 1\]"):
        opened_checkpoint(rewrite(hub, tmp_path / "scales", codes))


def test_others_are_left_alone(hub: Path, tmp_path: Path) -> None:
    """Of a config that the runtime does not know, and of layers beyond it."""
    stacks = fused(load_file(hub / "model.safetensors"))
    unknown = rewrite(hub, tmp_path / "unknown", stacks, hidden_act="squircle")
    assert opened_checkpoint(unknown).tensors.keys() == stacks.keys()
    deeper = stacks | {"model.layers.7.mlp.experts.down_proj": torch.ones(3, 64, 40)}
    found = opened_checkpoint(rewrite(hub, tmp_path / "deeper", deeper)).tensors
    assert "model.layers.7.mlp.experts.down_proj" in found
    assert opened_checkpoint(hub).tensors.keys() < found.keys()


def test_gpt_oss_in_mxfp4(tmp_path: Path) -> None:
    """As the hub has it: equal to transformers with its own dequantized weights; then through ``convert``, codes of both forms alike."""
    sizes = _SIZES | {"head_dim": 16, "num_local_experts": 3, "intermediate_size": 64, "sliding_window": 7, "swiglu_limit": 1.0}  # fmt: skip
    reference(AutoConfig.for_model("gpt_oss", **sizes), tmp_path / "first", torch.float16)
    wide = load_file(tmp_path / "first" / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    packed = {}
    for name, tensor in list(wide.items()):
        if tensor.ndim < 3:
            packed[name] = tensor
            continue
        blocks = torch.randint(256, (3, tensor.shape[2], 2, 16), generator=generator, dtype=torch.uint8)  # fmt: skip
        scales = torch.randint(120, 125, blocks.shape[:3], generator=generator, dtype=torch.uint8)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        wide[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    plain = rewrite(tmp_path / "first", tmp_path / "plain", wide)
    source = rewrite(tmp_path / "first", tmp_path / "source", packed, quantization_config={"quant_method": "mxfp4"})  # fmt: skip
    expected = logits(AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval(), _IDS)
    for form in (source, plain):
        assert (int8conv.load(form).logits(_IDS) - expected).abs().max() <= TOLERANCE
        int8conv.convert_checkpoint(form, tmp_path / f"{form.name}-int8")
        assert int8conv.compare(tmp_path / f"{form.name}-int8", form).worst_sqnr_db
    one, other = (folder_bytes(tmp_path / f"{form}-int8")[-2:] for form in ("source", "plain"))
    assert [name for name, _ in one] == [name for name, _ in other]
    assert one[0] == other[0]  # float32 either way, so that outlier columns are of one dtype too
    full = dequantized_reference(plain, tmp_path / "source-int8", tmp_path / "full")
    converted = int8conv.load(tmp_path / "source-int8", mode="w8a16")
    assert (converted.logits(_IDS) - logits(full, _IDS)).abs().max() <= TOLERANCE
