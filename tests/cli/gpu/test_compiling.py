"""The note while kernels are compiled for the first time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import click
import pytest
import triton

from int8conv.cli.gpu.compiling import note_compilations
from int8conv.errors import ArgumentError


def compile_(name: str, seconds: float, *, hit: bool) -> None:
    """As Triton tells of it."""
    listener: Any = triton.knobs.compilation.listener
    times = SimpleNamespace(total=1e6 * seconds)
    listener(src=None, metadata={"name": name}, metadata_group={}, times=times, cache_hit=hit)


def test_who_waits_is_told_why_and_how_long_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    with click.Context(click.Command("generate")):
        note_compilations("cuda:1")
        compile_("gemv_kernel", 0.5, hit=True)
        assert capsys.readouterr().err == ""
        compile_("gemv_kernel", 1.25, hit=False)
        assert "note: compiling kernels for this GPU" in capsys.readouterr().err
        compile_("gemm_kernel", 2.5, hit=False)
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "int8conv: note: compiled 2 kernels in 3.8 s\n"
    assert triton.knobs.compilation.listener is None


def test_nobody_waits_for_what_is_in_the_cache_or_not_needed(capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    with click.Context(click.Command("generate")):
        note_compilations("cpu")
        assert triton.knobs.compilation.listener is None
        note_compilations("cuda")
        compile_("gemv_kernel", 0.5, hit=True)
        with pytest.raises(ArgumentError, match="device"):
            note_compilations("tpu")
    assert capsys.readouterr().err == ""
