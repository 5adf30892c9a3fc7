"""``int8conv footprint``: sums, options, and headers only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .helpers import check_refused, read_raw_header, run, succeed


def report(path: Path, *flags: object) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(succeed("footprint", path, "--json", *flags).stdout)
    return value


@pytest.fixture(params=["example", "example_int8", "source"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def test_sums(folder: Path) -> None:
    value = report(folder)
    assert value["weights_total"] == sum(value["weights"].values())
    assert value["total"] == value["weights_total"] + value["kv_cache"] + value["activations"]
    rest = value["kv_cache"] + value["activations"]
    assert value["fp16"]["total"] == value["fp16"]["weights"] + rest
    tensors = 0
    for path in folder.glob("*.safetensors"):
        header, _ = read_raw_header(path)
        spans = [
            e["data_offsets"]
            for n, e in header.items()
            if "padding" not in n and n != "__metadata__"
        ]
        tensors += sum(end - begin for begin, end in spans)
    assert value["weights_total"] == tensors


def test_converted_against_source(example: Path, example_int8: Path) -> None:
    before, after = report(example), report(example_int8)
    assert before["weights_total"] == before["fp16"]["weights"] == after["fp16"]["weights"]
    assert after["weights_total"] < before["weights_total"]
    assert after["kv_cache"] == before["kv_cache"]


def test_context_batch_and_dtype(source: Path) -> None:
    """Keys and values: 2 x 2 layers x 2 heads x 16 x 2 bytes a position."""
    assert report(source)["context"] == 64
    assert report(source, "--context", 10)["kv_cache"] == 256 * 10
    assert report(source, "--context", 10, "--batch", 3)["kv_cache"] == 256 * 30
    assert report(source, "--context", 10, "--dtype", "float32")["kv_cache"] == 2 * 256 * 10
    assert report(source, "--dtype", "bfloat16")["dtype"] == "bfloat16"


def test_the_table(example_int8: Path) -> None:
    shown = succeed("footprint", example_int8, "--context", 100, "--batch", 2).stdout
    for word in ("fp16", "weights", "KV cache (2 x 100, float16)", "activations", "total", "ratio"):
        assert word in shown
    assert "1.00x" in shown.splitlines()[-1]


@pytest.mark.parametrize("context", [65, 10**9])
def test_a_context_longer_than_the_models(source: Path, context: int) -> None:
    check_refused(
        run("footprint", source, "--context", context), source, "1 to 64 positions", f"found {context}"
    )  # fmt: skip
