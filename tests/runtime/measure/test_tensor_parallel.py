"""One rank of tensor parallelism: the sizes that vLLM gives its layers, and what cannot be split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from int8conv.errors import ArgumentError, UnsupportedFeatureError
from int8conv.formats.int8.folder import open_converted
from int8conv.runtime.measure.footprint import predict_footprint
from int8conv.runtime.measure.tensor_parallel import rank_architecture
from int8conv.runtime.models.architecture import read_architecture

from ..models.newer_configs import NEWER

RELEASES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "models" / "releases.json").read_text()
)


def shapes(name: str, ranks: int, layer: int, *roles: str) -> list[tuple[int, ...]]:
    whole = read_architecture(RELEASES[name], ())
    modules = rank_architecture(whole, ranks).layer(layer)
    return [modules[role].shape for role in roles]


def test_shapes_of_a_rank() -> None:
    """Hidden 4096 (Mixtral), 2048 (DeepSeek); rows of wide linears, channels of narrow ones."""
    parts = ("q", "k", "o", "router", "3.gate", "3.down", "attn_norm")
    assert shapes("mistralai/Mixtral-8x7B-Instruct-v0.1", 4, 0, *parts) == [
        (1024, 4096), (256, 4096), (4096, 1024), (8, 4096), (3584, 4096), (4096, 3584), (4096,),
    ]  # fmt: skip
    latent = ("q", "kv_a", "kv_b", "o", "0.up", "shared_down")
    assert shapes("deepseek-ai/DeepSeek-V2-Lite", 8, 5, *latent) == [
        (384, 2048), (576, 2048), (512, 512), (2048, 256), (176, 2048), (2048, 352),
    ]  # fmt: skip
    # eight key heads on sixteen ranks: a copy of one on each
    assert shapes("unsloth/Qwen3-8B", 16, 0, "q", "k", "v") == [(256, 4096), (128, 4096), (128, 4096)]  # fmt: skip


def test_what_does_not_divide_is_refused_in_a_line() -> None:
    for name, ranks, text in (
        ("tiiuae/falcon-7b", 2, "71 heads cannot be split over 2 ranks: expected a divisor of 71, found 2"),
        ("google/gemma-2b", 3, "8 heads cannot"),
        ("unsloth/phi-4", 8, "10 key heads cannot"),
        ("mistralai/Mistral-7B-Instruct-v0.1", 0, "tensor_parallel"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=text) as caught:
            rank_architecture(read_architecture(RELEASES[name], ()), ranks)
        assert "\n" not in str(caught.value)
    for name, text in (("lfm2", "recurrent layers"), ("gemma4_text", "differ in their sizes")):
        other = read_architecture({"model_type": name} | NEWER[name][1], ())
        with pytest.raises(UnsupportedFeatureError, match=text):
            rank_architecture(other, 2)


def test_ranks_have_all_of_a_folder_between_them(example_int8: Path) -> None:
    one, two = (predict_footprint(example_int8, dtype="float16", context=64, tensor_parallel=n) for n in (1, 2))  # fmt: skip
    assert (one.ranks, two.ranks) == (1, 2)
    assert two.to_json()["tensor_parallel"] == 2
    assert "tensor_parallel" not in one.to_json()
    for kind in ("int8 weights", "embeddings"):
        assert 2 * two.weights[kind] == one.weights[kind]
    assert two.weights["norms"] == one.weights["norms"]
    assert 2 * two.kv_cache == one.kv_cache
    wide, narrow = 0, 0  # row scales: split with the rows of q, k, v, gate, up; whole of o and down
    columns = 0
    for linear in open_converted(example_int8).linears.values():
        split = linear.path.rpartition(".")[2] not in ("o_proj", "down_proj")
        wide, narrow = (wide + linear.out_features, narrow) if split else (wide, narrow + linear.out_features)  # fmt: skip
        rows = linear.out_features // 2 if split else linear.out_features
        # half of 16 columns, and as many as kernels take at once
        columns += linear.outliers * (4 + 2 * rows)
    assert two.weights["row scales"] == 4 * (wide // 2 + narrow)
    assert two.weights["outlier columns"] == columns
    assert sum(two.weights.values()) < 0.6 * sum(one.weights.values())


def test_a_config_a_source_and_a_wide_dtype(
    example: Path, example_int8: Path, tmp_path: Path
) -> None:
    """Before the conversion as after it, but for outlier columns; other weights in the dtype of activations."""
    options: dict[str, Any] = {"tensor_parallel": 2, "dtype": "float32", "context": 64}
    (tmp_path / "config.json").write_text((example / "config.json").read_text())
    alone, before, after = (predict_footprint(path, **options).weights for path in (tmp_path, example, example_int8))  # fmt: skip
    assert alone == before
    assert before.pop("outlier columns") >= after.pop("outlier columns")
    assert before == after
    assert before["embeddings"] == 4 * 4096 * 256
    source = predict_footprint(example, convert=False, **options)
    assert source.weights["embeddings"] == before["embeddings"]
    assert sum(source.weights.values()) == 2 * source.weights_16bit
