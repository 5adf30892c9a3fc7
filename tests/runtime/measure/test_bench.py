"""``benchmark``: counts, bytes and memory; never time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from int8conv.convert.converter import convert_checkpoint
from int8conv.errors import ArgumentError, GenerationError, Int8convError, NotFoundError
from int8conv.formats.safetensors.header import read_header
from int8conv.formats.source import checkpoint
from int8conv.runtime.backends.gpu.weights import DeviceConverted
from int8conv.runtime.decoder.decoder import Decoder
from int8conv.runtime.decoder.working_sizes import PREFILL_TOKENS
from int8conv.runtime.measure import bench, traffic
from int8conv.runtime.measure.bench import Benchmark, benchmark
from int8conv.runtime.measure.footprint import open_predictor
from int8conv.runtime.model import Model
from int8conv.runtime.opening import open_model

from ...checkpoints import write_checkpoint

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {"prompt_tokens": 5, "new_tokens": 3, "batch": 2, "runs": 2}


@pytest.fixture(autouse=True)
def little_memory_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "HOST_BYTES", 1 << 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("bench")
    convert_checkpoint(write_checkpoint(parent / "source"), parent / "int8")
    return parent / "int8"


def file_bytes(folder: Path, *without: str) -> int:
    """Of all tensors but some and the padding, as safetensors' own reader finds them."""
    tensors = [item for path in folder.glob("*.safetensors") for item in load_file(path).items()]
    return sum(t.nbytes for name, t in tensors if name not in without and "padding" not in name)


def test_counts_and_figures_of_a_converted_folder(folder: Path) -> None:
    result = benchmark(folder, mode="w8a16", **SIZES)
    assert (result.prompt_tokens, result.new_tokens, result.batch, result.runs) == (5, 3, 2, 2)
    assert (result.converted, result.mode, result.dtype) == (True, "w8a16", "float32")
    assert len(result.prefill_seconds) == len(result.decode_seconds) == 2
    assert 0 < result.load_seconds < result.first_token_seconds
    assert result.bandwidth > 0
    assert result.predicted == open_predictor(folder).at(8, 2, prompt=5)


def test_speeds_are_medians_over_the_runs(folder: Path) -> None:
    result = benchmark(folder, **SIZES)
    values = vars(result) | {"prefill_seconds": [1.0, 9.0, 2.0], "decode_seconds": [3.0, 4.0, 50.0]}
    result = Benchmark(**values)
    assert (result.prefill_speed, result.decode_speed) == (2 * 5 / 2.0, 2 * 3 / 4.0)
    assert result.weight_speed == result.weight_bytes * 3 / 4.0
    decode = result.to_json()["decode"]
    assert decode["tokens_per_second"] == result.decode_speed
    assert decode["share_of_bandwidth"] == result.weight_speed / result.bandwidth


def test_weights_of_a_step_are_the_tensors_of_the_file_without_the_embedding(folder: Path) -> None:
    result = benchmark(folder, **SIZES)
    assert result.weight_bytes == file_bytes(folder, "model.embed_tokens.weight")


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("float16", 2)])
def test_a_source_counts_in_the_dtype_it_runs_in(source: Path, dtype: str, itemsize: int) -> None:
    result = benchmark(source, dtype=dtype, **SIZES)
    assert (result.converted, result.dtype) == (False, dtype)
    assert result.weight_bytes == file_bytes(source, "model.embed_tokens.weight") // 2 * itemsize
    assert bool(result.memory.mapped) == (dtype == "float16")


def recorded_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], int]]:
    """The shape of the token ids, and the cache's length, at each pass that follows."""
    calls = []
    forward = Decoder.forward

    def recorded(self: Decoder, ids: Tensor, cache: Any = None, **options: Any) -> Tensor:
        calls.append((tuple(ids.shape), cache.length))
        return forward(self, ids, cache, **options)

    monkeypatch.setattr(Decoder, "forward", recorded)
    return calls


def test_every_run_reads_the_prompts_and_takes_the_steps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one and from the start, then together; once more before the runs, with one step."""
    calls = recorded_calls(monkeypatch)
    benchmark(folder, **SIZES)
    prompts = [((1, 5), 0), ((1, 5), 0)]
    steps = [((2, 1), length) for length in (5, 6, 7)]
    assert calls == [*prompts, *steps[:1], *prompts, *steps, *prompts, *steps]


def test_long_prompts_pass_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PREFILL_TOKENS, "cpu", 4)
    calls = recorded_calls(monkeypatch)
    benchmark(folder, prompt_tokens=10, new_tokens=1, runs=1)
    once = [((1, 4), 0), ((1, 4), 4), ((1, 2), 8), ((1, 1), 10)]
    assert calls == once + once


def test_the_kernels_of_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter."""
    opened, half = open_model(folder), torch.float16
    form = opened.architecture
    decoder = Decoder(form, DeviceConverted(opened.converted, form.config, half, CPU), half)
    monkeypatch.setattr(bench, "load_opened", lambda *_: Model(opened, decoder))
    result = benchmark(folder, prompt_tokens=3, new_tokens=1, runs=1)
    assert (result.dtype, result.runs) == ("float16", 1)


def test_every_header_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []

    def recorded(file: Any) -> Any:
        read.append(file)
        return read_header(file)

    monkeypatch.setattr(checkpoint, "read_header", recorded)
    benchmark(folder, **SIZES)
    assert sorted(map(str, read)) == sorted(map(str, folder.glob("*.safetensors")))


def test_progress_names_loading_and_runs(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    benchmark(folder, **SIZES, progress=lambda *news: told.append(news))
    assert told == [("load", 0, 1), ("load", 1, 1), ("runs", 1, 2), ("runs", 2, 2)]


def test_json_has_every_figure(folder: Path) -> None:
    value = benchmark(folder, **SIZES).to_json()
    assert set(value["decode"]) >= {"tokens_per_second", "weight_bytes_per_step", "share_of_bandwidth"}  # fmt: skip
    assert set(value["loading"]) >= {"seconds", "first_token_seconds", "bytes", "in_page_cache"}
    assert value["memory"]["predicted"]["total"] == value["memory"]["predicted"]["weights_total"] + \
        value["memory"]["predicted"]["kv_cache"] + value["memory"]["predicted"]["activations"]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"prompt_tokens": 0}, ArgumentError, "prompt_tokens: expected 1 or more, found 0"),
        ({"new_tokens": 0}, ArgumentError, "new_tokens"),
        ({"runs": 0}, ArgumentError, "runs"),
        ({"batch": 0}, ArgumentError, "batch"),
        ({"prompt_tokens": 60, "new_tokens": 5}, GenerationError, "1 to 64 positions, found 65"),
        ({"device": "tpu"}, ArgumentError, "device"),
        ({"dtype": "int8"}, ArgumentError, "dtype"),
    ],
)
def test_what_cannot_be_is_refused(
    folder: Path, options: dict[str, Any], error: type[Int8convError], words: str
) -> None:
    with pytest.raises(error, match=words):
        benchmark(folder, **SIZES | options)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        benchmark(tmp_path / "absent")
