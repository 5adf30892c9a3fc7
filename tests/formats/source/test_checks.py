"""What is no plain source is refused, and the error says what it is: packed by whoever, wrapped, an adapter, a placeholder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from int8conv.errors import AdapterError, AlreadyQuantizedError, ShapeError, WrappedNamesError
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.formats.source.checks import check_plain

from ...checkpoints import LLAMA, random_tensors, write_checkpoint
from ..damage import edit_json, rejected


def test_a_plain_source_passes(source: Path) -> None:
    check_plain(open_checkpoint(source))


@pytest.mark.parametrize("section", [None, {}])
def test_an_empty_section_passes(source: Path, section: object) -> None:
    edit_json(source / "config.json", lambda config: config.update(quantization_config=section))
    check_plain(open_checkpoint(source))


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "int8conv"])
def test_a_config_that_says_so(source: Path, key: str, method: str) -> None:
    edit_json(source / "config.json", lambda c: c.update({key: {"quant_method": method}}))
    with rejected(AlreadyQuantizedError, str(source / "config.json"), key, method):
        check_plain(open_checkpoint(source))


@pytest.mark.parametrize("method", [["fp8"], {"fp8": 1}, [], {}, 8, True, None])
def test_a_method_that_is_no_text(source: Path, method: object) -> None:
    section = {"quant_method": method, "bits": 8}
    edit_json(source / "config.json", lambda config: config.update(quantization_config=section))
    with rejected(AlreadyQuantizedError, str(source / "config.json"), repr(method)):
        check_plain(open_checkpoint(source))


def test_a_section_of_another_kind(source: Path) -> None:
    edit_json(source / "config.json", lambda config: config.update(quantization_config="gptq"))
    with rejected(AlreadyQuantizedError, str(source / "config.json")):
        check_plain(open_checkpoint(source))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("model.layers.0.mlp.up_proj.SCB", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.weight.absmax", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.weight_format", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.qweight", "GPTQ"),
        ("model.layers.0.mlp.up_proj.qzeros", "AWQ"),
        ("model.layers.0.mlp.up_proj.weight_packed", "compressed-tensors"),
        ("model.layers.0.mlp.up_proj.weight_zero_point", "compressed-tensors"),
        ("model.layers.0.mlp.up_proj.weight_scale", "scale"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "FP8"),
        ("model.layers.0.mlp.up_proj.outlier_index", "int8conv"),
        ("model.layers.0.mlp.up_proj.outlier_weight", "int8conv"),
        ("int8conv.padding.0", "int8conv"),
    ],
)
def test_a_tensor_that_says_so(tmp_path: Path, name: str, method: str) -> None:
    tensors = random_tensors(LLAMA) | {name: torch.zeros(4)}
    source = write_checkpoint(tmp_path / "quantized", LLAMA, tensors)
    with rejected(AlreadyQuantizedError, "model.safetensors", f"'{name}'", method):
        check_plain(open_checkpoint(source))


I8, U8, U32 = torch.int8, torch.uint8, torch.uint32
PACKED = {
    "bitsandbytes": {"weight": (I8, 64, 64), "SCB": (torch.float32, 64)},
    "GPTQ": {"qweight": (torch.int32, 8, 64), "scales": (torch.float16, 1, 64), "g_idx": (torch.int32, 64)},
    "MLX": {"weight": (U32, 64, 8), "scales": (torch.float16, 64, 1), "biases": (torch.float16, 64, 1)},
    "EETQ": {"weight": (I8, 64, 64), "weight_scales": (torch.float16, 64)},
    "quanto": {"weight._data": (I8, 64, 64), "weight._scale": (torch.float32, 64, 1)},
    "HQQ": {"W_q": (U8, 32, 64), "scale": (torch.float32, 64, 1), "zero": (torch.float32, 64, 1)},
    "MXFP4": {"weight_blocks": (U8, 64, 2, 16), "weight_scales": (U8, 64, 2)},
    "NVFP4": {"weight": (U8, 64, 32), "weight_scale": (torch.float8_e4m3fn, 64, 4), "weight_scale_2": (torch.float32,)},
    "torchao": {"_weight_qdata": (I8, 64, 64), "_weight_scale": (torch.float32, 64, 1)},
    "integers with a scale": {"weight": (I8, 64, 64), "scale": (torch.float32, 64, 1)},
    "integers (I16)": {"weight": (torch.int16, 64, 64)},
    "AQLM": {"codes": (I8, 64, 8, 1), "codebooks": (torch.float16, 1, 256, 1, 8)},
}  # fmt: skip


@pytest.mark.parametrize("method", PACKED)
@pytest.mark.parametrize("known", [True, False])
def test_packed_without_a_word_in_the_config(tmp_path: Path, method: str, known: bool) -> None:
    config = LLAMA if known else {"model_type": "some_vlm", "hidden_size": 64}
    tensors = {}
    for name, tensor in random_tensors(LLAMA).items():
        if "_proj" not in name:
            tensors[name] = tensor
            continue
        for kind, (dtype, *shape) in PACKED[method].items():
            tensors[name.replace("weight", kind)] = torch.zeros(shape, dtype=dtype)
    source = write_checkpoint(tmp_path / "packed", config, tensors)
    with rejected(AlreadyQuantizedError, "model.safetensors", "_proj.", method, "use the checkpoint"):  # fmt: skip
        check_plain(open_checkpoint(source))


def test_integers_that_are_no_weight_pass(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA) | {
        "model.position_ids": torch.arange(5), "model.mask": torch.ones(2, dtype=torch.bool),
        "x._data": torch.zeros(1, dtype=I8), "y_blocks": torch.zeros(1, dtype=U8),
    }  # fmt: skip
    check_plain(open_checkpoint(write_checkpoint(tmp_path / "plain", LLAMA, tensors)))


@pytest.mark.parametrize("method", [["gptq"], {"a": 1}, 8, True, [], None])
@pytest.mark.parametrize("nested", [True, False])
def test_a_method_of_the_wrong_kind(source: Path, method: object, nested: bool) -> None:
    section = {"quantization_config": {"quant_method": method, "bits": 4}}
    change = {"text_config": section} if nested else section
    edit_json(source / "config.json", lambda config: config.update(change))
    with rejected(AlreadyQuantizedError, str(source / "config.json"), "quant_method"):
        check_plain(open_checkpoint(source))


def test_mlx_says_it_in_a_key_of_its_own(source: Path) -> None:
    mlx = {"quantization": {"group_size": 64, "bits": 4}}
    edit_json(source / "config.json", lambda config: config.update(mlx))
    with rejected(AlreadyQuantizedError, str(source / "config.json"), "MLX"):
        check_plain(open_checkpoint(source))
    edit_json(source / "config.json", lambda config: config.update(quantization="none"))
    check_plain(open_checkpoint(source))


@pytest.mark.parametrize("base", ["some/model-7B", None])
def test_what_it_was_made_from_is_in_the_hint(source: Path, base: str | None) -> None:
    section = {"quantization_config": {"quant_method": "awq"}, "_name_or_path": base}
    edit_json(source / "config.json", lambda config: config.update(section))
    hint = f"it was made from: {base})" if base else "it was made from)"
    with rejected(AlreadyQuantizedError, hint):
        check_plain(open_checkpoint(source))


@pytest.mark.parametrize(
    ("rename", "by"),
    [
        (lambda name: f"_orig_mod.{name}", "torch.compile"),
        (lambda name: name.replace("layers.1.", "layers.1._orig_mod."), "torch.compile"),
        (lambda name: f"module.{name}", "DistributedDataParallel"),
        (lambda name: f"base_model.model.{name}", "peft"),
        (lambda name: f"_fsdp_wrapped_module.{name}", "FSDP"),
    ],
)
def test_names_of_a_wrapper(tmp_path: Path, rename: Callable[[str], str], by: str) -> None:
    tensors = {rename(name): tensor for name, tensor in random_tensors(LLAMA).items()}
    source = write_checkpoint(tmp_path / "wrapped", LLAMA, tensors)
    with rejected(WrappedNamesError, str(source), by, "rename"):
        check_plain(open_checkpoint(source))


def test_a_module_that_is_called_so_is_no_wrapper(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA) | {"module.extra.weight": torch.ones(3).half()}
    check_plain(open_checkpoint(write_checkpoint(tmp_path / "plain", LLAMA, tensors)))


def test_an_adapter_under_a_models_name(tmp_path: Path) -> None:
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{path}.lora_A.weight": torch.ones(8, 64), f"{path}.lora_B.weight": torch.ones(64, 8)}  # fmt: skip
    source = write_checkpoint(tmp_path / "adapter", LLAMA, tensors)
    with rejected(AdapterError, str(source), "merge"):
        check_plain(open_checkpoint(source))
    beside = write_checkpoint(tmp_path / "both", LLAMA, random_tensors(LLAMA) | tensors)
    check_plain(open_checkpoint(beside))  # as Phi-4-multimodal has them


def test_a_placeholder_of_zero_3(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = random_tensors(LLAMA) | {name: torch.empty(0).half(), "other": torch.empty(0).half()}
    source = write_checkpoint(tmp_path / "zero", LLAMA, tensors)
    with rejected(ShapeError, f"'{name}'", "ZeRO-3", "zero_to_fp32"):
        check_plain(open_checkpoint(source))


def test_a_converted_folder_is_no_source(converted: Path) -> None:
    with rejected(AlreadyQuantizedError, str(converted), "int8conv"):
        check_plain(open_checkpoint(converted))
