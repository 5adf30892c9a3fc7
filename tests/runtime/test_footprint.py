"""The footprint's sums against the files themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from int8conv.errors import ArgumentError, GenerationError
from int8conv.formats.checkpoint import open_checkpoint
from int8conv.runtime.footprint import predict_footprint


def test_weights_are_all_of_the_files_tensors(example: Path, example_int8: Path) -> None:
    source, converted = predict_footprint(example), predict_footprint(example_int8)
    assert sum(source.weights.values()) == open_checkpoint(example).nbytes
    assert sum(converted.weights.values()) == open_checkpoint(example_int8).nbytes
    assert set(converted.weights) == {
        "int8 weights",
        "embeddings",
        "row scales",
        "outlier columns",
        "norms",
    }
    assert converted.weights_16bit == source.weights_16bit == open_checkpoint(example).nbytes


def test_int8_weights_are_half_of_their_source(example: Path, example_int8: Path) -> None:
    source, converted = predict_footprint(example).weights, predict_footprint(example_int8).weights
    linears = source["attention (16/32 bit)"] + source["FFN (16/32 bit)"]
    assert 2 * converted["int8 weights"] == linears


@pytest.mark.parametrize(("dtype", "item"), [("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_cache_is_layers_heads_positions(example: Path, dtype: str, item: int) -> None:
    footprint = predict_footprint(example, context=100, batch=3, dtype=dtype)
    assert footprint.kv_cache == 6 * 2 * (2 * 64) * 100 * 3 * item


def test_total_is_the_sum(example_int8: Path) -> None:
    footprint = predict_footprint(example_int8, context=10)
    parts = footprint.to_json()
    assert parts["total"] == parts["weights_total"] + parts["kv_cache"] + parts["activations"]
    assert (
        parts["fp16"]["total"] - parts["fp16"]["weights"]
        == parts["kv_cache"] + parts["activations"]
    )
    assert footprint.total < footprint.total_16bit


def test_impossible_requests_are_refused(example: Path) -> None:
    with pytest.raises(GenerationError, match="expected 1 to 1024 positions, found 1025"):
        predict_footprint(example, context=1025)
    with pytest.raises(ArgumentError, match="batch"):
        predict_footprint(example, batch=0)
    with pytest.raises(ArgumentError, match="dtype"):
        predict_footprint(example, dtype="int4")
