"""``int8conv bench``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from int8conv.runtime.measure import traffic

from .helpers import check_refused, run, succeed


@pytest.fixture(autouse=True)
def little_memory_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "HOST_BYTES", 1 << 20)


SIZES = ("--prompt-tokens", 5, "--new-tokens", 2, "--runs", 1)


def test_prints_what_was_measured(example_int8: Path) -> None:
    result = succeed("bench", example_int8, *SIZES, "--mode", "w8a16", "--batch", 2)
    lines = result.stdout.splitlines()
    for label in ("prefill", "decode", "- weights per step", "load and first token", "peak memory"):
        assert any(line.startswith(f"{label} ") for line in lines), label
    assert "of a measured read of" in result.stdout
    assert lines[-1].startswith("2 x (5 prompt + 2 new tokens), median of 1 runs; w8a16, float32, ")
    assert result.stderr == ""


def test_json_of_a_source(example: Path) -> None:
    value = json.loads(succeed("bench", example, *SIZES, "--json").stdout)
    assert (value["converted"], value["prompt_tokens"], value["new_tokens"]) == (False, 5, 2)
    assert value["decode"]["weight_bytes_per_step"] > 0
    assert value["memory"]["predicted"]["context"] == 7


def test_refused(example: Path, tmp_path: Path) -> None:
    check_refused(run("bench", tmp_path / "absent"), "absent")
    check_refused(
        run("bench", example, *SIZES, "--mode", "w8a8"), "mode applies to converted folders only"
    )
    check_refused(run("bench", example, "--prompt-tokens", 5000), "does not fit", 5032)
    check_refused(run("bench", example, *SIZES, "--device", "tpu"), "expected cpu, cuda or cuda:N")
    assert run("bench", example, "--runs", 0).exit_code == 2
