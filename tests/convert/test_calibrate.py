"""Calibration measures what the source computes: against the first layer's input by hand, and on both kinds of input."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import load_file
from torch import Tensor

from int8conv.convert.calibrate import CONTEXT, TOKENS, Calibration, Progress, calibrate
from int8conv.errors import CalibrationError, NonFiniteWeightError
from int8conv.formats.checkpoint import open_checkpoint
from int8conv.runtime.architecture import read_architecture
from int8conv.runtime.tokenizer import Tokenizer

from ..checkpoints import LLAMA, OPT, random_tensors, write_checkpoint

TEXT = (resources.files("int8conv.convert") / "calibration_text.txt").read_bytes()


def measure(folder: Path, progress: Progress = lambda done, total: None) -> Calibration:
    checkpoint = open_checkpoint(folder)
    architecture = read_architecture(checkpoint.config, checkpoint.tensors)
    return calibrate(checkpoint, architecture, progress)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


def test_the_first_input_by_hand(example: Path) -> None:
    """Embedding, norm, largest magnitude of each channel over the text's first 1024 tokens."""
    tensors = load_file(example / "model.safetensors")
    ids = Tokenizer.load(example).encode(TEXT.decode())
    ids = (ids * TOKENS)[:TOKENS]
    x = tensors["model.embed_tokens.weight"].double()[ids]
    x = rms_norm(x, tensors["model.layers.0.input_layernorm.weight"].double(), 1e-6)
    found = measure(example).absmax["model.layers.0.self_attn.q_proj"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, x.abs().amax(dim=0).numpy(), rtol=1e-5)


def test_the_first_input_of_opt_by_hand(tmp_path: Path) -> None:
    """Learned positions are added, from row 2; the norm has a bias; random tokens are seeded."""
    tensors = random_tensors(OPT)
    folder = write_checkpoint(tmp_path / "source", OPT, tensors)
    calibration = measure(folder)
    windows, context = calibration.windows, calibration.context
    assert (windows, context) == (16, 64)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(96, (windows, context), generator=generator)
    double = {name: tensor.double() for name, tensor in tensors.items()}
    x = double["model.decoder.embed_tokens.weight"][ids]
    x = x + double["model.decoder.embed_positions.weight"][2 : 2 + context]
    norm = "model.decoder.layers.0.self_attn_layer_norm"
    x = torch.layer_norm(x, (64,), double[f"{norm}.weight"], double[f"{norm}.bias"], 1e-5)
    found = calibration.absmax["model.decoder.layers.0.self_attn.q_proj"]
    np.testing.assert_allclose(found, x.abs().amax(dim=(0, 1)).numpy(), rtol=1e-5)


def test_every_input_is_measured(example: Path) -> None:
    checkpoint = open_checkpoint(example)
    architecture = read_architecture(checkpoint.config, checkpoint.tensors)
    calibration = measure(example)
    groups = {group[0].path: group[0].shape[1] for group in architecture.groups()}
    assert {path: len(absmax) for path, absmax in calibration.absmax.items()} == groups
    assert all((absmax > 0).all() for absmax in calibration.absmax.values())


def test_the_record_of_a_text(example: Path) -> None:
    calibration = measure(example)
    assert calibration.notes == ()
    record = calibration.record()
    assert record["text"] == xxhash.xxh3_128_hexdigest(TEXT)
    assert (record["tokens"], record["context"]) == (TOKENS, CONTEXT)


def test_random_tokens_are_noted_and_repeatable(source: Path) -> None:
    first, second = measure(source), measure(source)
    assert first.text is None
    assert first.record()["text"] is None
    (note,) = first.notes
    assert "random tokens" in note
    assert first.absmax.keys() == second.absmax.keys()
    for path, absmax in first.absmax.items():
        np.testing.assert_array_equal(absmax, second.absmax[path])


@pytest.mark.parametrize(
    ("positions", "shape"), [(2048, (4, 256)), (100, (11, 100)), (1, (1024, 1))]
)
def test_windows_fit_the_model(tmp_path: Path, positions: int, shape: tuple[int, int]) -> None:
    folder = write_checkpoint(tmp_path / "source", LLAMA | {"max_position_embeddings": positions})
    calibration = measure(folder)
    assert (calibration.windows, calibration.context) == shape


def test_progress_counts_layers(source: Path) -> None:
    told: list[tuple[int, int]] = []
    measure(source, lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_a_tokenizer_of_another_model(example: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source")
    shutil.copy(example / "tokenizer.json", folder)
    with pytest.raises(CalibrationError, match=r"expected 0\.\.95.*do not belong together"):
        measure(folder)


def test_an_activation_that_overflows(tmp_path: Path) -> None:
    """Weights are finite, the sum of their products is not."""
    tensors = random_tensors(LLAMA, torch.bfloat16)
    tensors["model.layers.0.self_attn.v_proj.weight"].fill_(3e38)
    with pytest.raises(CalibrationError, match="NaN or infinite in channel") as caught:
        measure(write_checkpoint(tmp_path / "source", tensors=tensors))
    assert caught.value.tensor == "model.layers.0.self_attn.o_proj.weight"
    assert "--outliers none" in str(caught.value)


@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_itself(
    tmp_path: Path, config: dict[str, Any], bad: float
) -> None:
    """Not the activation that it leads to."""
    tensors = random_tensors(config)
    names = [n for n in tensors if ".layers.1." in n and n.endswith(("v_proj.weight", "norm.bias"))]
    for name in names:
        changed = {n: tensor.clone() for n, tensor in tensors.items()}
        changed[name][3] = bad
        folder = write_checkpoint(tmp_path / name, config, changed)
        with pytest.raises(NonFiniteWeightError, match="row 3") as caught:
            measure(folder)
        assert caught.value.tensor == name
        assert caught.value.file == str(folder / "model.safetensors")
