"""Weights in the memory of a GPU, on the CPU: which projections they make, and in which dtype tensors come."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from int8conv.convert.converter import convert_checkpoint
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.backends.gpu.backend import GpuBackend
from int8conv.runtime.backends.gpu.files import DeviceFiles, DeviceTensors
from int8conv.runtime.backends.gpu.projections import (
    DenseProjection,
    QuantizedProjection,
    SplitDeviceProjection,
)
from int8conv.runtime.backends.gpu.weights import DeviceCheckpoint, DeviceConverted
from int8conv.runtime.models.architecture import Module

from ....checkpoints import LLAMA, OPT, put_fp8, write_checkpoint
from .conftest import CPU
from .rehearsal import architecture

HALF, BRAIN = torch.float16, torch.bfloat16


def modules(folder: Path, *roles: str) -> list[Module]:
    form = architecture(folder)
    found = form.layer(0) | form.outside()
    return [found[role] for role in roles]


def converted(folder: Path, dtype: torch.dtype = HALF, **options: object) -> DeviceConverted:
    return DeviceConverted(
        open_converted(folder), architecture(folder).config, dtype, CPU, **options
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OPT whose k was kept; not to be changed."""
    folder = tmp_path_factory.mktemp("weights")
    write_checkpoint(folder / "source", OPT | {"num_hidden_layers": 1})
    convert_checkpoint(folder / "source", folder / "int8", keep=["k_proj"])
    return folder


def test_projections_of_a_converted_folder(folder: Path) -> None:
    weights = converted(folder / "int8", BRAIN, mode="w8a8")
    quantized = weights.projection(modules(folder / "int8", "o"))
    assert isinstance(quantized, QuantizedProjection)
    assert (quantized.mode, quantized.sizes) == ("w8a8", [64])
    assert quantized.weight.codes.shape == (64, 64)
    stored = load_file(folder / "source" / "model.safetensors")
    name = "model.decoder.layers.0.self_attn"
    assert quantized.bias is not None
    assert torch.equal(quantized.bias, stored[f"{name}.out_proj.bias"])  # as the file has it
    split = weights.projection(modules(folder / "int8", "q", "k", "v"))
    assert isinstance(split, SplitDeviceProjection)
    kinds = [type(part) for part in split.parts]
    assert {DenseProjection, QuantizedProjection} == set(kinds)
    dense = split.parts[kinds.index(DenseProjection)]
    assert isinstance(dense, DenseProjection)
    ((weight, bias),) = dense.pairs
    assert weight.dtype == HALF
    assert bias is not None
    assert bias.dtype == BRAIN  # of activations
    assert torch.equal(bias, stored[f"{name}.k_proj.bias"].to(BRAIN))
    assert torch.equal(weight, stored[f"{name}.k_proj.weight"])


def test_the_backend_knows_what_the_fallback_counts(folder: Path) -> None:
    weights = converted(folder / "int8")
    assert isinstance(weights.backend, GpuBackend)
    assert isinstance(weights.files, DeviceFiles)
    weights.projection(modules(folder / "int8", "o"))
    assert weights.backend.counters is weights.counters
    assert list(weights.counters) == ["model.decoder.layers.0.self_attn.out_proj"]
    quiet = converted(folder / "int8", outlier_fallback=False)
    quiet.projection(modules(folder / "int8", "o"))
    assert quiet.counters == {}
    weights.check_files()


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=str)
def test_a_source_comes_in_the_dtype_of_activations(folder: Path, dtype: torch.dtype) -> None:
    source = folder / "source"
    stored = load_file(source / "model.safetensors")
    config = architecture(source).config
    weights = DeviceCheckpoint(open_checkpoint(source), config, dtype, CPU)
    assert isinstance(weights.files, DeviceTensors)
    assert isinstance(weights.backend, GpuBackend)
    dense = weights.projection(modules(source, "q", "k"))
    assert isinstance(dense, DenseProjection)
    for (weight, bias), role in zip(dense.pairs, "qk", strict=True):
        name = f"model.decoder.layers.0.self_attn.{role}_proj"
        assert torch.equal(weight, stored[f"{name}.weight"].to(dtype))
        assert bias is not None
        assert torch.equal(bias, stored[f"{name}.bias"].to(dtype))
    (norm,) = modules(source, "attn_norm")
    name = "model.decoder.layers.0.self_attn_layer_norm"
    assert torch.equal(weights.tensor(norm), stored[f"{name}.weight"].to(dtype))
    assert torch.equal(weights.tensor(norm, "bias"), stored[f"{name}.bias"].to(dtype))
    (embed,) = modules(source, "embed")
    rows = weights.lookup(embed)(torch.tensor([[3]]))
    assert torch.equal(rows[0, 0], stored["model.decoder.embed_tokens.weight"][3].to(dtype))


def test_fp8_is_decoded_on_the_host(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path, LLAMA | {"num_hidden_layers": 1})
    decoded = put_fp8(source, "block")
    weights = DeviceCheckpoint(open_checkpoint(source), architecture(source).config, HALF, CPU)
    dense = weights.projection(modules(source, "up", "gate"))
    assert isinstance(dense, DenseProjection)
    for (weight, bias), role in zip(dense.pairs, ("up", "gate"), strict=True):
        assert torch.equal(weight, decoded[f"model.layers.0.mlp.{role}_proj.weight"].half())
        assert bias is None
