"""``int8conv eval``: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .helpers import check_refused, run, succeed
from .test_calibrate import TEXT


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_a_model_alone(example_int8: Path, text: Path) -> None:
    lines = succeed("eval", example_int8, "--text", text, "--window", 64).stdout.splitlines()
    assert any(line.startswith("perplexity, w8a8") for line in lines)
    assert "windows of 64 every 64 tokens; text " in lines[-1]


def test_against_the_source(example: Path, example_int8: Path, text: Path) -> None:
    options = ["--text", text, "--window", 64, "--tokens", 256]
    result = succeed("eval", example_int8, *options, "--against", example, "--report-outliers")
    for words in ("perplexity, source", "ratio", "KL divergence, mean", "same most likely token"):
        assert words in result.stdout
    assert "252 of 256 tokens scored" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("outlier fallback: ")
    value = json.loads(
        succeed(
            "eval", example_int8, *options, "--against", example, "--mode", "w8a16", "--json"
        ).stdout
    )
    assert value["mode"] == "w8a16"
    assert 0.99 < value["against"]["ratio"] < 1.01
    assert len(value["against"]["layers"]) == 6
    assert value["outlier_fallback"]["model.layers.0.self_attn.q_proj"]["values"] == 0


def test_an_int8_cache(example: Path, example_int8: Path, text: Path) -> None:
    options = ["--text", text, "--window", 64, "--tokens", 256, "--kv-cache", "int8"]
    result = succeed("eval", example_int8, *options)
    assert "perplexity, w8a8, int8 KV cache" in result.stdout
    value = json.loads(succeed("eval", example, *options, "--against", example, "--json").stdout)
    assert value["kv_cache"] == "int8"
    assert 0 < value["against"]["kl_mean"] < 1e-3
    assert value["perplexity"] != value["against"]["perplexity"]


def test_a_source_alone(example: Path, text: Path) -> None:
    result = succeed("eval", example, "--text", text, "--tokens", 600)
    assert "perplexity, source" in result.stdout
    assert "KL" not in result.stdout


def test_refusals(example: Path, example_int8: Path, text: Path, source: Path) -> None:
    check_refused(run("eval", example, "--text", text.parent / "absent"), "absent")
    check_refused(run("eval", example_int8, "--text", text, "--window", 9999), "2 to 1024", "9999")
    check_refused(
        run("eval", example_int8, "--text", text, "--against", source), "not the source of"
    )
    text.write_text("")
    check_refused(run("eval", example, "--text", text), text, "the text is empty")
    assert run("eval", example).exit_code == 2
