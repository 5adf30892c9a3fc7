"""``load``: which dtypes and caches are taken on which device, what is refused, and what the model is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import int8conv
from int8conv.convert.converter import convert_checkpoint
from int8conv.errors import ArgumentError, NotFoundError
from int8conv.runtime.backends.gpu.weights import DeviceCheckpoint, DeviceConverted
from int8conv.runtime.devices import DeviceKind, Placement
from int8conv.runtime.loader import cache_dtype, choose_dtype, load, load_opened
from int8conv.runtime.models.generation_config import read_generation_defaults
from int8conv.runtime.opening import open_model
from int8conv.runtime.weights.weights import CheckpointWeights, ConvertedWeights

from ..checkpoints import LLAMA, write_checkpoint
from ..formats.damage import rejected

CPU = torch.device("cpu")
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source`` and ``int8`` in F16, ``brain`` in BF16; not to be changed."""
    folder = tmp_path_factory.mktemp("loader")
    config = LLAMA | {"num_hidden_layers": 1}
    convert_checkpoint(write_checkpoint(folder / "source", config), folder / "int8")
    write_checkpoint(folder / "brain", config, dtype=BF16)
    return folder


@pytest.mark.parametrize(
    ("kv_cache", "dtype", "device", "expected"),
    [
        (None, F32, "cpu", F32), (None, BF16, "cuda", BF16), ("float16", F32, "cpu", F16), ("bfloat16", F32, "cpu", BF16),
        ("float32", F16, "cpu", F32), ("int8", F32, "cpu", torch.int8), ("int8", F16, "cuda", torch.int8), ("float16", F16, "cuda", F16),
    ],
)  # fmt: skip
def test_caches(kv_cache: str | None, dtype: torch.dtype, device: DeviceKind, expected: torch.dtype) -> None:  # fmt: skip
    assert cache_dtype(kv_cache, dtype, device) == expected


@pytest.mark.parametrize("kv_cache", ["int4", "", "torch.float16", "float64"])
def test_no_such_cache(kv_cache: str) -> None:
    for device in ("cpu", "cuda"):
        with rejected(ArgumentError, "kv_cache: expected float32 or float16 or bfloat16 or int8", repr(kv_cache)):  # fmt: skip
            cache_dtype(kv_cache, F16, device)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kv_cache", "dtype"), [("float32", F16), ("bfloat16", F16), ("float16", BF16)])  # fmt: skip
def test_a_gpus_cache_is_of_its_activations(kv_cache: str, dtype: torch.dtype) -> None:
    with rejected(ArgumentError, "kv_cache on a GPU", f"expected {str(dtype)[6:]} or int8", f"found {kv_cache}"):  # fmt: skip
        cache_dtype(kv_cache, dtype, "cuda")


def test_dtypes_of_activations(folder: Path) -> None:
    """Float32 on a CPU; the embedding's own 16 bits on a GPU."""
    half, brain = open_model(folder / "source"), open_model(folder / "brain")
    for opened, expected in ((half, F16), (brain, BF16)):
        assert choose_dtype(None, "cpu", opened) == F32
        assert choose_dtype(None, "cuda", opened) == expected
        for dtype in ("float16", "torch.float16", F16):
            assert choose_dtype(dtype, "cuda", opened) == choose_dtype(dtype, "cpu", opened) == F16
        assert choose_dtype("bfloat16", "cpu", opened) == BF16
    assert choose_dtype("float32", "cpu", half) == F32
    with rejected(ArgumentError, "dtype: expected float16 or bfloat16, found float32"):
        choose_dtype(F32, "cuda", half)
    for dtype in ("int8", torch.float64, "half"):
        with rejected(ArgumentError, "dtype: expected float32 or float16 or bfloat16", "found"):
            choose_dtype(dtype, "cpu", half)


def weights_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What decoders are made of from now on."""
    from int8conv.runtime import loader

    made: list[Any] = []
    real = loader.Decoder
    monkeypatch.setattr(loader, "Decoder", lambda form, weights, *a: made.append((weights, *a)) or real(form, weights, *a))  # fmt: skip
    return made


def test_a_converted_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = weights_of(monkeypatch)
    model = load(folder / "int8", mode="w8a8", dtype="bfloat16", kv_cache="int8")
    (weights, dtype, cache), = made  # fmt: skip
    assert (type(weights), weights.mode, weights.dtype) == (ConvertedWeights, "w8a8", BF16)
    assert (dtype, cache) == (BF16, torch.int8)
    assert (model.decoder.dtype, model.decoder.kv_cache, model.mode) == (BF16, torch.int8, "w8a8")
    assert model.fallback_counters is weights.counters
    assert model.fallback_counters != {}
    assert model.check_files == weights.check_files
    assert model.loading is None
    load(folder / "int8", outlier_fallback=False)
    assert made[1][0].counters == {}
    assert made[1][1:] == (F32, F32)


def test_a_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = weights_of(monkeypatch)
    model = load(str(folder / "source"), device="cpu:0")
    assert (type(made[0][0]), made[0][0].dtype) == (CheckpointWeights, F32)
    assert model.fallback_report().inputs == ()
    assert model.check_files == made[0][0].check_files


def test_defaults_of_the_checkpoint_are_read(folder: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path, LLAMA)
    (source / "generation_config.json").write_text('{"top_k": 3, "num_beams": 2, "do_sample": true}')  # fmt: skip
    model = load(source)
    assert model.defaults == read_generation_defaults(source, LLAMA)
    assert model.defaults.unsupported == ("num_beams=2",)


@pytest.mark.parametrize(("name", "kind"), [("int8", DeviceConverted), ("source", DeviceCheckpoint)])  # fmt: skip
def test_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: type) -> None:
    """On the CPU in its place: files have gone to it once the model is there."""
    made = weights_of(monkeypatch)
    opened = open_model(folder / name)
    model = load_opened(opened, Placement("cuda", CPU), kv_cache="int8")
    assert (type(made[0][0]), *made[0][1:]) == (kind, F16, torch.int8)
    assert model.loading is made[0][0].files.loading
    assert model.loading is not None
    assert model.loading.nbytes > 0
    assert made[0][0].files._staging is None


def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path) -> None:
    with rejected(ArgumentError, "mode: expected w8a8 or w8a16, found 'w4'"):
        load(tmp_path / "absent", mode="w4")  # type: ignore[arg-type]  # before anything is opened
    with rejected(ArgumentError, str(folder / "source"), "mode applies to converted folders only", "'w8a8'"):  # fmt: skip
        load(folder / "source", mode="w8a8")
    with pytest.raises(NotFoundError, match="no such folder"):
        load(tmp_path / "absent")
    assert int8conv.load is load
