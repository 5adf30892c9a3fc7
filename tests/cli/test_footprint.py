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
    parts = [value["fp16"][name] for name in ("weights", "kv_cache", "activations")]
    assert value["fp16"]["total"] == sum(parts)


def test_weights_are_the_files_tensors(folder: Path) -> None:
    value = report(folder, "--dtype", "float16", "--unconverted")
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
    half = ("--dtype", "float16")
    before, after = report(example, "--unconverted", *half), report(example_int8, *half)
    assert before["weights_total"] == before["fp16"]["weights"] == after["fp16"]["weights"]
    assert after["weights_total"] < before["weights_total"]
    assert after["kv_cache"] == before["kv_cache"]


def test_context_batch_and_dtype(source: Path) -> None:
    """Keys and values: 2 x 2 layers x 2 heads x 16 x 2 bytes a position."""
    half, ten = ("--dtype", "float16"), ("--context", 10)
    assert report(source)["context"] == 64
    assert report(source, *ten, *half)["kv_cache"] == 256 * 10
    assert report(source, *ten, *half, "--batch", 3)["kv_cache"] == 256 * 30
    assert report(source, *ten)["kv_cache"] == 2 * 256 * 10
    assert report(source, *ten, "--kv-cache", "float16")["kv_cache"] == 256 * 10
    assert report(source, *ten, "--device", "cuda")["kv_cache"] == 256 * 10
    assert report(source, "--dtype", "bfloat16")["dtype"] == "bfloat16"


def test_the_table(example_int8: Path) -> None:
    shown = succeed("footprint", example_int8, "--context", 100, "--batch", 2).stdout
    for word in ("fp16", "weights", "KV cache (2 x 100, float32)", "activations", "total", "ratio"):
        assert word in shown
    assert "1.00x" in shown.splitlines()[-1]


@pytest.mark.parametrize("context", [65, 10**9])
def test_a_context_longer_than_the_models(source: Path, context: int) -> None:
    check_refused(
        run("footprint", source, "--context", context), source, "1 to 64 positions", f"found {context}"
    )  # fmt: skip


def test_whether_it_fits(example_int8: Path) -> None:
    shown = succeed("footprint", example_int8, "--vram", "24GB", "--batch", 2).stdout
    assert "fits in 24.0 GB" in shown
    assert "largest context: 1024 at batch 1, 1024 at batch 2" in shown
    assert "does not fit in 1.0 MB" in succeed("footprint", example_int8, "--vram", "1MB").stdout
    value = report(example_int8, "--vram", "20MB", "--context", 256)["vram"]
    assert value["fits"]
    fitting = report(example_int8, "--device", "cuda", "--context", value["largest_context"])
    assert fitting["total"] <= 20e6
    assert run("footprint", example_int8, "--vram", "much").exit_code == 2


def test_a_table_of_usual_sizes(example_int8: Path) -> None:
    rows = report(example_int8, "--table")["table"]
    assert [row["context"] for row in rows] == [512, 1024]
    alone = report(example_int8, "--context", 512, "--batch", 16)
    assert rows[0]["totals"]["16"] == alone["total"]
    assert "total by context and batch" in succeed("footprint", example_int8, "--table").stdout


@pytest.fixture
def unknown(source: Path) -> Path:
    config = json.loads((source / "config.json").read_text()) | {"model_type": "sphinx"}
    (source / "config.json").write_text(json.dumps(config))
    return source


def test_an_unknown_family_has_weights(unknown: Path) -> None:
    value = report(unknown)
    assert value["weights_total"] == sum(value["weights"].values()) > 0
    assert value["kv_cache"] is value["activations"] is value["total"] is None
    assert report(unknown, "--vram", "1GB")["vram"]["fits"] is None
    assert report(unknown, "--vram", "1kB")["vram"]["fits"] is False
    shown = succeed("footprint", unknown, "--vram", "1kB")
    assert "unknown model_type 'sphinx'" in shown.stderr
    assert "the sizes of KV cache and activations are unknown" in shown.stderr
    assert "do not fit in 1.0 kB" in shown.stdout
    assert shown.stdout.count("unknown") == 4


def test_an_unknown_config_alone_says_nothing(unknown: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((unknown / "config.json").read_bytes())
    check_refused(run("footprint", tmp_path), "unknown model_type 'sphinx'")


def test_weights_that_are_not_the_configs_are_refused(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"vocab_size": 95}))
    check_refused(run("footprint", source), "embed_tokens", "[95, 64]", "[96, 64]")
