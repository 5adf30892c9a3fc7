"""Calibration measures what the source computes: against the first layer's input by hand, and on both kinds of input."""

from __future__ import annotations

import shutil
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import load_file
from torch import Tensor

from int8conv.convert.outliers.calibrate import calibrate_opened
from int8conv.convert.outliers.collect import fingerprint, merge
from int8conv.convert.outliers.texts import CONTEXT, RANDOM_TOKENS
from int8conv.errors import CalibrationError, NonFiniteWeightError, NotFoundError, TokenizerError
from int8conv.formats.int8.stats import InputStats, Stats
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.progress import Progress, silent
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.text.tokenizer import Tokenizer

from ...checkpoints import LLAMA, OPT, random_tensors, write_checkpoint

TEXT = (resources.files("int8conv.convert.outliers") / "calibration_text.txt").read_bytes()


def measure(folder: Path, progress: Progress = silent, **options: Any) -> Stats:
    checkpoint = open_checkpoint(folder)
    architecture = read_architecture(checkpoint.config, checkpoint.tensors)
    return calibrate_opened(checkpoint, architecture, progress, **options)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


def test_the_first_input_by_hand(example: Path) -> None:
    """Embedding, norm, then every statistic of a channel over the text's whole windows."""
    tensors = load_file(example / "model.safetensors")
    ids = Tokenizer.load(example).encode(TEXT.decode())
    ids = ids[: len(ids) // CONTEXT * CONTEXT]
    x = tensors["model.embed_tokens.weight"].double()[ids]
    x = rms_norm(x, tensors["model.layers.0.input_layernorm.weight"].double(), 1e-6)
    stats = measure(example)
    found = stats.inputs["model.layers.0.self_attn.q_proj"]
    assert stats.tokens == len(ids)
    assert found.absmax.dtype == np.float32
    np.testing.assert_allclose(found.absmax, x.abs().amax(dim=0).numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.squares[0], (x**2).sum(dim=0).numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.fourths[0], (x**4).sum(dim=0).numpy(), rtol=1e-5)
    np.testing.assert_array_equal(found.large, (x.abs() >= 6).sum(dim=0).numpy())
    error = 0.0
    for name in "qkv":
        weight = tensors[f"model.layers.0.self_attn.{name}_proj.weight"].double()
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        error += ((weight - (weight / scale).round() * scale) ** 2).sum(dim=0)
    np.testing.assert_allclose(found.weight_error, torch.as_tensor(error).sqrt().numpy(), rtol=1e-3)


def test_each_window_begins_as_a_prompt_does(with_bos: Path) -> None:
    tensors = load_file(with_bos / "model.safetensors")
    tokenizer = Tokenizer.load(with_bos)
    ids = torch.tensor(tokenizer.encode(TEXT.decode(), special=False))
    text = ids[: len(ids) // (CONTEXT - 1) * (CONTEXT - 1)].reshape(-1, CONTEXT - 1)
    bos = torch.full((len(text), 1), tokenizer.encode("")[0])
    x = tensors["model.embed_tokens.weight"].double()[torch.cat([bos, text], dim=1)].flatten(0, 1)
    x = rms_norm(x, tensors["model.layers.0.input_layernorm.weight"].double(), 1e-6)
    stats = measure(with_bos)
    assert (stats.context, stats.tokens) == (CONTEXT, len(x))
    found = stats.inputs["model.layers.0.self_attn.q_proj"]
    np.testing.assert_allclose(found.squares[0], (x**2).sum(dim=0).numpy(), rtol=1e-5)


def test_the_first_input_of_opt_by_hand(tmp_path: Path) -> None:
    """Learned positions are added, from row 2; the norm has a bias; random tokens are seeded."""
    tensors = random_tensors(OPT)
    folder = write_checkpoint(tmp_path / "source", OPT, tensors)
    calibration = measure(folder)
    windows, context = calibration.tokens // calibration.context, calibration.context
    assert (windows, context) == (16, 64)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(96, (windows, context), generator=generator)
    double = {name: tensor.double() for name, tensor in tensors.items()}
    x = double["model.decoder.embed_tokens.weight"][ids]
    x = x + double["model.decoder.embed_positions.weight"][2 : 2 + context]
    norm = "model.decoder.layers.0.self_attn_layer_norm"
    x = torch.layer_norm(x, (64,), double[f"{norm}.weight"], double[f"{norm}.bias"], 1e-5)
    found = calibration.inputs["model.decoder.layers.0.self_attn.q_proj"].absmax
    np.testing.assert_allclose(found, x.abs().amax(dim=(0, 1)).numpy(), rtol=1e-5)


def test_every_input_is_measured(example: Path) -> None:
    checkpoint = open_checkpoint(example)
    architecture = read_architecture(checkpoint.config, checkpoint.tensors)
    calibration = measure(example)
    groups = {group[0].path: group[0].shape[1] for group in architecture.groups()}
    assert {path: len(found.absmax) for path, found in calibration.inputs.items()} == groups
    assert all((found.absmax > 0).all() for found in calibration.inputs.values())
    expected = {p for p in groups if p.endswith(("q_proj", "gate_proj"))}
    assert set(calibration.normalised) == expected
    assert calibration.linears["model.layers.3.mlp.gate_proj"] == (
        "model.layers.3.mlp.gate_proj", "model.layers.3.mlp.up_proj",
    )  # fmt: skip


def test_the_record_of_a_text(example: Path) -> None:
    calibration = measure(example)
    assert not calibration.random
    ((text, tokens),) = calibration.texts
    assert text == xxhash.xxh3_128_hexdigest(TEXT)
    assert (tokens, calibration.context) == (calibration.tokens, CONTEXT)


def test_random_tokens_are_marked_and_repeatable(source: Path) -> None:
    first, second = measure(source), measure(source)
    assert first.random
    assert first.texts == ((None, RANDOM_TOKENS),)
    assert first.inputs.keys() == second.inputs.keys()
    for path, found in first.inputs.items():
        np.testing.assert_array_equal(found.absmax, second.inputs[path].absmax)


@pytest.mark.parametrize(
    ("positions", "shape"), [(2048, (4, 256)), (100, (11, 100)), (1, (1024, 1))]
)
def test_windows_fit_the_model(tmp_path: Path, positions: int, shape: tuple[int, int]) -> None:
    folder = write_checkpoint(tmp_path / "source", LLAMA | {"max_position_embeddings": positions})
    calibration = measure(folder)
    assert (calibration.tokens // calibration.context, calibration.context) == shape


def test_progress_counts_layers(source: Path) -> None:
    told: list[tuple[str, int, int]] = []
    measure(source, lambda *news: told.append(news))
    assert told == [("calibrate", 0, 2), ("calibrate", 1, 2), ("calibrate", 2, 2)]


def test_a_tokenizer_of_another_model(example: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source")
    shutil.copy(example / "tokenizer.json", folder)
    with pytest.raises(CalibrationError, match=r"expected 0\.\.95.*does not belong to this config"):
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


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def same(a: Stats, b: Stats) -> bool:
    return a.inputs.keys() == b.inputs.keys() and all(
        np.array_equal(getattr(a.inputs[path], field.name), getattr(b.inputs[path], field.name))
        for path in a.inputs for field in fields(InputStats)
    )  # fmt: skip


def test_own_text_and_a_part_of_it(example: Path, tmp_path: Path) -> None:
    text = write(tmp_path / "text.txt", TEXT)
    whole = measure(example, texts=[text], context=64)
    assert whole.context == 64
    part = measure(example, texts=[text], context=64, tokens=200, seed=1)
    assert part.tokens == 256  # whole windows
    assert same(part, measure(example, texts=[text], context=64, tokens=200, seed=1))
    assert not same(part, measure(example, texts=[text], context=64, tokens=200, seed=2))
    assert same(whole, measure(example, texts=[text], context=64, tokens=10**9))


def test_merged_halves_are_the_whole(example: Path, tmp_path: Path) -> None:
    """Bit for bit, in every statistic."""
    lines = TEXT.decode().splitlines(keepends=True)
    first = write(tmp_path / "a.txt", "".join(lines[:25]))
    second = write(tmp_path / "b.txt", "".join(lines[25:]))
    options = {"context": 64}
    parts = [
        ("a", measure(example, texts=[first], **options)),
        ("b", measure(example, texts=[second], **options)),
    ]
    whole = measure(example, texts=[first, second], **options)
    merged = merge(parts)
    assert not same(whole, parts[0][1])
    assert same(whole, merged)
    assert (whole.texts, whole.tokens) == (merged.texts, merged.tokens)
    assert merge(parts[::-1]).inputs.keys() == whole.inputs.keys()
    assert same(whole, merge(parts[::-1]))


def test_a_context_that_the_model_does_not_have(source: Path) -> None:
    for context in (1, 65):
        with pytest.raises(CalibrationError, match=f"expected 2 to 64 tokens, found {context}"):
            measure(source, context=context)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the text is empty"),
        (" \n\n", "the text is empty"),
        ("two words", "shorter than a window: expected 256 tokens or more, found"),
        (b"\xff\xfe", "not UTF-8 text at byte 0"),
    ],
    ids=["empty", "blank", "short", "not text"],
)
def test_a_text_that_is_of_no_use(
    example: Path, tmp_path: Path, text: str | bytes, problem: str
) -> None:
    path = write(tmp_path / "text.txt", text)
    with pytest.raises(CalibrationError, match=problem) as caught:
        measure(example, texts=[path])
    assert caught.value.file == str(path)


def test_own_text_needs_a_tokenizer(source: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer"):
        measure(source, texts=[write(tmp_path / "text.txt", TEXT)])
    with pytest.raises(NotFoundError):
        measure(source, texts=[tmp_path / "absent.txt"])


def test_the_fingerprint_is_of_the_weights(tmp_path: Path) -> None:
    """Not of how they are stored; and one changed weight in the middle of a matrix is seen."""
    tensors = random_tensors(LLAMA)
    one = open_checkpoint(write_checkpoint(tmp_path / "one", tensors=tensors))
    several = open_checkpoint(write_checkpoint(tmp_path / "several", tensors=tensors, shards=3))
    assert fingerprint(one) == fingerprint(several)
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    changed["model.layers.1.mlp.up_proj.weight"][80, 30] += 1
    other = open_checkpoint(write_checkpoint(tmp_path / "other", tensors=changed))
    assert fingerprint(other) != fingerprint(one)
