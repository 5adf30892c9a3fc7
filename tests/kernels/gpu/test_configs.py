"""The table of launch configurations."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from int8conv.errors import ArgumentError
from int8conv.kernels.gpu import configs


def test_the_first_row_that_fits_is_taken() -> None:
    few = configs.choose("gemm", 90, tokens=100, out=4096)
    many = configs.choose("gemm", 90, tokens=8192, out=4096)
    assert few["block_m"] < many["block_m"]
    assert "max_tokens" not in few


@pytest.mark.parametrize("capability", configs.GENERATIONS)
def test_every_shape_has_a_row(capability: int) -> None:
    for kernel in configs._table():
        for tokens in (1, 64, 10**6):
            assert configs.choose(kernel, capability, tokens=tokens, out=10**6)


@pytest.mark.parametrize(("capability", "like"), [(86, 89), (103, 100), (121, 120), (75, None), (130, 89)])  # fmt: skip
def test_other_gpus(capability: int, like: int | None) -> None:
    if like is None:
        with pytest.raises(ArgumentError, match="compute capability: expected 80 or more, found 75"):  # fmt: skip
            configs.generation(capability)
    else:
        assert configs.generation(capability) == like


def test_rows_of_odd_channels() -> None:
    assert configs.by_alignment("gemm", 4112) == "gemm"
    assert configs.by_alignment("gemm", 4104) == "gemm_unaligned"


def test_the_file_is_as_the_tuner_writes_it() -> None:
    text = resources.files("int8conv.kernels.gpu").joinpath("configs.json").read_text()
    assert configs.dumps(json.loads(text)) == text
