"""Evaluation with the kernels of a GPU, in the interpreter, beside the CPU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from int8conv.convert.converter import convert_checkpoint
from int8conv.errors import ArgumentError
from int8conv.runtime.measure.evaluate import Evaluation, evaluate

from ....checkpoints import LLAMA, write_checkpoint
from ....cli.helpers import succeed

pytestmark = pytest.mark.usefixtures("few_programs", "gpu_of_the_cpu")

OPTIONS: dict[str, Any] = {"window": 8, "tokens": 20, "stride": 6}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(97 + i * i % 26) for i in range(60)))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A source of two layers, and what it becomes without stored columns."""
    source = write_checkpoint(tmp_path / "source", LLAMA | {"num_hidden_layers": 2})
    letters = {chr(32 + i): i for i in range(96)}
    Tokenizer(BPE(letters, [])).save(str(source / "tokenizer.json"))
    convert_checkpoint(source, tmp_path / "int8", max_outliers=0, outlier_rule="absmax")
    return source, tmp_path / "int8"


def both(path: Path, text: Path, **options: Any) -> tuple[Evaluation, Evaluation]:
    cpu, gpu = (evaluate(path, text, device=d, **OPTIONS, **options) for d in ("cpu", "cuda"))
    assert (cpu.scored, cpu.tokens, cpu.text) == (gpu.scored, gpu.tokens, gpu.text)
    return cpu, gpu


@pytest.mark.parametrize("mode", ["w8a8", "w8a16"])
def test_a_converted_folder_against_its_source(pair: tuple[Path, Path], text: Path, mode: Any) -> None:  # fmt: skip
    source, converted = pair
    cpu, gpu = both(converted, text, against=source, mode=mode)
    assert (cpu.dtype, gpu.dtype) == ("float32", "float16")
    assert cpu.against is not None
    assert gpu.against is not None
    assert gpu.against.perplexity == cpu.against.perplexity  # the source, in float32 on either
    # After a rounding to float16 some activations fall on the other side of the threshold, or of the middle between two int8
    # values: with integer activations the two differ by a part of what either of them differs from the source.
    near = 2e-3 if mode == "w8a16" else cpu.against.layers[-1].relative_rms / 4
    assert gpu.perplexity == pytest.approx(cpu.perplexity, rel=near)
    assert [each.layer for each in gpu.against.layers] == [0, 1]
    for ours, theirs in zip(gpu.against.layers, cpu.against.layers, strict=True):
        assert ours.relative_rms == pytest.approx(theirs.relative_rms, rel=0.3)


def test_what_the_net_takes_is_counted_there_too(pair: tuple[Path, Path], text: Path) -> None:
    cpu, gpu = both(pair[1], text)
    assert cpu.outlier_fallback is not None
    assert gpu.outlier_fallback is not None
    assert [each.input for each in gpu.outlier_fallback.inputs] == [
        each.input for each in cpu.outlier_fallback.inputs
    ]
    assert gpu.outlier_fallback.tokens == cpu.outlier_fallback.tokens == 24
    assert gpu.outlier_fallback.values == pytest.approx(
        cpu.outlier_fallback.values, rel=0.05, abs=2
    )
    assert cpu.outlier_fallback.values > 0


def test_a_source_runs_there_in_float32(pair: tuple[Path, Path], text: Path) -> None:
    cpu, gpu = both(pair[0], text)
    assert (gpu.perplexity, gpu.dtype) == (cpu.perplexity, "float32")


def test_keys_and_values_through_a_cache(pair: tuple[Path, Path], text: Path) -> None:
    converted = pair[1]
    plain, cached = (
        evaluate(converted, text, device="cuda", kv_cache=kind, **OPTIONS)
        for kind in (None, "float16")
    )
    assert cached.perplexity == plain.perplexity  # they are of 16 bits anyway
    narrow, on_cpu = (
        evaluate(converted, text, device=device, mode="w8a16", kv_cache="int8", **OPTIONS)
        for device in ("cuda", "cpu")
    )
    assert narrow.perplexity == pytest.approx(on_cpu.perplexity, rel=1e-3)
    with pytest.raises(ArgumentError, match="kv_cache on a GPU"):
        evaluate(converted, text, device="cuda", kv_cache="bfloat16", **OPTIONS)


def test_the_command(pair: tuple[Path, Path], text: Path) -> None:
    flags = ("--window", 12, "--tokens", 24, "--device", "cuda", "--report-outliers")
    lines = succeed("eval", pair[1], "--text", text, *flags).stdout.splitlines()
    assert any(line.startswith("perplexity, w8a8, float16") for line in lines)
    assert lines[-1].startswith("outlier fallback: ")
