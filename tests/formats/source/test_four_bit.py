"""Four-bit weights as sources: every code, against transformers' tables and plain arithmetic; what is another thing stays refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import FP4_VALUES, convert_moe_packed_tensors

import int8conv
from int8conv.errors import AlreadyQuantizedError, CompanionError
from int8conv.formats.hub.download import resolve
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.formats.source.four_bit import pairs, unpacked
from int8conv.formats.source.matrix import MatrixReader, find_matrix
from int8conv.runtime.opening import open_unconverted

from ...checkpoints import LLAMA, edit_config, write_checkpoint

Q = "model.layers.0.self_attn.q_proj"
INT4 = {"group_0": {"weights": {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32}}}
_GENERATOR = torch.Generator().manual_seed(3)


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=_GENERATOR, dtype=torch.uint8)


def exponents(*shape: int) -> Tensor:
    return torch.randint(118, 126, shape, generator=_GENERATOR, dtype=torch.uint8)


def values_of(folder: Path, name: str, block_elements: int = 1 << 18) -> np.ndarray[Any, Any]:
    checkpoint = unpacked(open_checkpoint(folder))
    matrix = find_matrix(checkpoint, checkpoint.tensor(name))
    assert matrix.dtype == "F32"
    blocks = [bits.copy() for _, bits in MatrixReader(matrix, block_elements).blocks()]
    return np.concatenate(blocks).view(np.float32)


def pack_int4(values: Tensor) -> Tensor:
    """``[out, in]`` in -8..7 -> I32 ``[out, in / 8]``, the first of eight in the lowest bits."""
    nibbles = (values + 8).view(len(values), -1, 8).long() << torch.arange(0, 32, 4)
    return nibbles.sum(-1).to(torch.uint32).view(torch.int32)


def test_every_code() -> None:
    low, high = pairs("F4").T
    codes = np.arange(256)
    np.testing.assert_array_equal(low, np.array(FP4_VALUES, np.float32)[codes & 15])
    np.testing.assert_array_equal(high, np.array(FP4_VALUES, np.float32)[codes >> 4])
    assert np.signbit(low[8])  # negative zero
    np.testing.assert_array_equal(pairs("I4")[0x7F], [7, -1])


def test_stacks_of_mxfp4_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    blocks, scales = random_bytes(3, 10, 2, 16), exponents(3, 10, 2)
    folder = write_checkpoint(tmp_path, tensors={"a.up_blocks": blocks, "a.up_scales": scales})
    checkpoint = unpacked(open_checkpoint(folder))
    assert {n: (t.dtype, t.shape) for n, t in checkpoint.tensors.items()} == {
        "a.up": ("F4", (3, 10, 64)),
        "a.up_scale": ("F8_E8M0", (3, 10, 2)),
    }
    stack = checkpoint.tensor("a.up")
    one = stack._replace(name="a.1.up.weight", shape=(10, 64), offset=stack.offset + 320, nbytes=320)  # fmt: skip
    scale = checkpoint.tensor("a.up_scale")
    own = scale._replace(name="a.1.up.weight_scale", shape=(10, 2), offset=scale.offset + 20, nbytes=20)  # fmt: skip
    checkpoint.tensors.update({t.name: t for t in (one, own)})
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)[1].t().numpy()
    for block_elements in (1, 200, 1 << 18):
        reader = MatrixReader(find_matrix(checkpoint, one), block_elements)
        found = np.concatenate([bits.copy() for _, bits in reader.blocks()]).view(np.float32)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("weight", "dtype", "scale", "kind"),
    [
        (f"{Q}.weight", torch.int8, f"{Q}.scale", torch.float8_e8m0fnu),
        (f"{Q}.weight_packed", torch.uint8, f"{Q}.weight_scale", torch.uint8),
    ],
)
def test_fp4_in_bytes(
    tmp_path: Path, weight: str, dtype: torch.dtype, scale: str, kind: torch.dtype
) -> None:
    codes, powers = random_bytes(48, 32), exponents(48, 2)
    expected = convert_moe_packed_tensors(codes.view(1, 48, 2, 16), powers[None], dtype=torch.float32)[0].t()  # fmt: skip
    folder = write_checkpoint(
        tmp_path, tensors={weight: codes.view(dtype), scale: powers.view(kind)}
    )
    np.testing.assert_array_equal(values_of(folder, f"{Q}.weight"), expected.numpy())


@pytest.mark.parametrize("groups", [2, 1])
def test_int4_in_groups(tmp_path: Path, groups: int) -> None:
    values = torch.randint(-8, 8, (48, 64), generator=_GENERATOR)
    scale = torch.rand(48, groups, generator=_GENERATOR).to(torch.bfloat16)
    tensors = {
        f"{Q}.weight_packed": pack_int4(values), f"{Q}.weight_scale": scale,
        f"{Q}.weight_shape": torch.tensor([48, 64]),
    }  # fmt: skip
    folder = write_checkpoint(tmp_path, tensors=tensors)
    edit_config(folder, quantization_config={"quant_method": "compressed-tensors", "config_groups": INT4})  # fmt: skip
    expected = values.float() * scale.float().repeat_interleave(64 // groups, dim=1)
    np.testing.assert_array_equal(values_of(folder, f"{Q}.weight", 100), expected.numpy())


def test_mxfp8_has_exponents_in_u8(tmp_path: Path) -> None:
    weight = torch.randn(48, 64, generator=_GENERATOR).to(torch.float8_e4m3fn)
    powers = exponents(48, 2)
    folder = write_checkpoint(tmp_path, tensors={f"{Q}.weight": weight, f"{Q}.weight_scale": powers})  # fmt: skip
    wide = torch.exp2(powers.float() - 127).repeat_interleave(32, dim=1)
    np.testing.assert_array_equal(values_of(folder, f"{Q}.weight"), (weight.float() * wide).numpy())


@pytest.mark.parametrize(
    ("tensors", "weights"),
    [
        ({"weight_zero_point": torch.zeros(6, 2, dtype=torch.int32)}, {}),
        ({"weight_g_idx": torch.zeros(64, dtype=torch.int32)}, {}),
        ({}, {"num_bits": 8}),
        ({}, {"type": "float"}),
        ({}, {"symmetric": False}),
    ],
)
def test_other_packed_integers_stay_refused(
    tmp_path: Path, tensors: dict[str, Tensor], weights: dict[str, Any]
) -> None:
    packed = {f"{Q}.weight_packed": torch.zeros(48, 8, dtype=torch.int32), f"{Q}.weight_scale": torch.ones(48, 2)}  # fmt: skip
    packed |= {f"{Q}.{kind}": tensor for kind, tensor in tensors.items()}
    folder = write_checkpoint(tmp_path, tensors=packed)
    groups = {"group_0": {"weights": INT4["group_0"]["weights"] | weights}}
    edit_config(folder, quantization_config={"quant_method": "compressed-tensors", "config_groups": groups})  # fmt: skip
    with pytest.raises(AlreadyQuantizedError, match="already quantized"):
        open_unconverted(resolve(folder))


def test_a_model_in_int4_converts_and_runs_as_its_values_do(tmp_path: Path) -> None:
    """Kimi K2 Thinking's form, in a Llama: the same codes as its values in float32, and the same logits."""
    wide = write_checkpoint(tmp_path / "wide", dtype=torch.float32)
    plain, packed = load_file(wide / "model.safetensors"), {}
    for name, weight in list(plain.items()):
        if "_proj" not in name:
            packed[name] = weight
            continue
        scale = (weight.unflatten(1, (-1, 32)).abs().amax(-1) / 7).to(torch.bfloat16)
        each = scale.float().repeat_interleave(32, dim=1)
        codes = (weight / each).round().clamp(-8, 7)
        plain[name] = codes * each
        packed |= {
            f"{name}_packed": pack_int4(codes.long()), f"{name}_scale": scale,
            f"{name}_shape": torch.tensor(weight.shape),
        }  # fmt: skip
    save_file(plain, wide / "model.safetensors", {"format": "pt"})
    source = write_checkpoint(tmp_path / "source", tensors=packed)
    edit_config(source, quantization_config={"quant_method": "compressed-tensors", "config_groups": INT4})  # fmt: skip
    ids = torch.arange(40)[None]
    ours = int8conv.load(source).logits(ids)
    assert (ours - int8conv.load(wide).logits(ids)).abs().max() <= 1e-6
    for form in ("source", "wide"):
        int8conv.convert_checkpoint(tmp_path / form, tmp_path / f"{form}-int8")
    assert int8conv.compare(tmp_path / "source-int8", source).worst_sqnr_db
    one, other = (load_file(tmp_path / f"{form}-int8" / "model-00001-of-00001.safetensors") for form in ("source", "wide"))  # fmt: skip
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    packed = {f"{Q}.weight_packed": torch.zeros(48, 8, dtype=torch.int32), f"{Q}.weight_scale": torch.ones(48, 3)}  # fmt: skip
    folder = write_checkpoint(tmp_path, LLAMA, packed)
    edit_config(folder, quantization_config={"quant_method": "compressed-tensors", "config_groups": INT4})  # fmt: skip
    checkpoint = unpacked(open_checkpoint(folder))
    with pytest.raises(CompanionError, match="scales do not fit"):
        find_matrix(checkpoint, checkpoint.tensor(f"{Q}.weight"))


def test_an_unknown_family_with_experts_in_four_bits(tmp_path: Path) -> None:
    """DeepSeek-V4's form: FP4 experts beside FP8 linears, E8M0 scales called ``.scale``, integers that are no weight; and INT4."""
    fp8 = torch.randn(64, 128, generator=_GENERATOR).to(torch.float8_e4m3fn)
    tensors = {
        "embed.weight": torch.ones(96, 64, dtype=torch.bfloat16),
        "layers.0.attn.wq_a.weight": fp8, "layers.0.attn.wq_a.scale": exponents(1, 1).view(torch.float8_e8m0fnu),
        "layers.0.ffn.experts.0.w1.weight": random_bytes(64, 32).view(torch.int8),
        "layers.0.ffn.experts.0.w1.scale": exponents(64, 2).view(torch.float8_e8m0fnu),
        "layers.0.ffn.experts.0.w2.weight_packed": torch.zeros(64, 8, dtype=torch.int32),
        "layers.0.ffn.experts.0.w2.weight_scale": torch.ones(64, 2),
        "layers.0.ffn.gate.tid2eid": torch.arange(96).view(48, 2),
    }  # fmt: skip
    source = write_checkpoint(tmp_path / "source", {"model_type": "deepseek_v4"}, tensors)
    edit_config(source, quantization_config={"quant_method": "fp8", "config_groups": INT4})
    report = int8conv.convert_checkpoint(source, tmp_path / "out")
    assert report.quantized == 3
    assert int8conv.compare(tmp_path / "out", source).worst_sqnr_db
    kept = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    assert torch.equal(kept["layers.0.ffn.gate.tid2eid"], tensors["layers.0.ffn.gate.tid2eid"])
    assert not [name for name in kept if name.endswith(".scale")]  # multiplied into the weights
