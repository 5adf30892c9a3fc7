"""Which checkpoints are recognized as packed by whom, and what is refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.convert.exchange.packed import find_packed
from int8conv.errors import (
    AlreadyQuantizedError,
    ArgumentError,
    CompanionError,
    Int8convError,
    NumberError,
)
from int8conv.formats.source.checkpoint import open_checkpoint

from ...checkpoints import LLAMA, write_checkpoint
from .packed_checkpoints import COMPRESSED, bitsandbytes_tensors, compressed_tensors, write_packed

Q = "model.layers.0.self_attn.q_proj"


def test_both_quantizers_are_known_by_their_tensors(tmp_path: Path) -> None:
    write_packed(tmp_path / "b", bitsandbytes_tensors)
    scale = torch.ones(1)
    others = {f"{Q}.input_scale": scale, f"{Q}.weight_scale": torch.tensor(0.5)}
    write_packed(tmp_path / "c", compressed_tensors, others=others)
    found = find_packed(open_checkpoint(tmp_path / "b"))
    assert (found.quantizer, len(found.linears), found.threshold) == ("bitsandbytes", 14, 6.0)
    assert found.skipped == {}
    assert "quantization_config" not in found.plain.config
    assert {t.dtype for t in found.plain.tensors.values()} == {"F16"}
    found = find_packed(open_checkpoint(tmp_path / "c"))
    assert (found.quantizer, len(found.linears), found.threshold) == ("compressed-tensors", 14, None)  # fmt: skip
    assert list(found.skipped) == [f"{Q}.input_scale"]
    assert found.linears[Q].scales().tolist() == [0.5] * 64  # one for all rows


def broken(kind: str, value: Tensor) -> dict[str, Tensor]:
    return {f"{Q}.{kind}": value}


@pytest.mark.parametrize(
    ("pack", "others", "config", "error", "text"),
    [
        (bitsandbytes_tensors, broken("weight_format", torch.tensor(1, dtype=torch.uint8)), {}, AlreadyQuantizedError, "certain GPUs"),
        (bitsandbytes_tensors, broken("SCB", torch.ones(63)), {}, CompanionError, r"SCB.*expected a float per row, \[64\]"),
        (bitsandbytes_tensors, broken("weight", torch.ones(64, 64)), {}, CompanionError, "no int8 matrix"),
        (bitsandbytes_tensors, broken("qweight", torch.ones(4, dtype=torch.int32)), {}, AlreadyQuantizedError, "GPTQ"),
        (compressed_tensors, broken("weight_scale", torch.ones(64, 4)), {}, CompanionError, "weight_scale"),
        (compressed_tensors, broken("weight_zero_point", torch.ones(64, 1)), {}, AlreadyQuantizedError, "compressed-tensors"),
        (compressed_tensors, {}, {"quantization_config": {"quant_method": "quark"}}, AlreadyQuantizedError, "quark"),
        (compressed_tensors, {}, {"quantization_config": {"quant_method": "int8conv"}}, ArgumentError, "an int8conv folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported(
    tmp_path: Path, pack: Any, others: dict[str, Tensor], config: dict[str, Any],
    error: type[Int8convError], text: str,
) -> None:  # fmt: skip
    write_packed(tmp_path, pack, LLAMA | config, others=others)
    with pytest.raises(error, match=text) as caught:
        find_packed(open_checkpoint(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_plain_checkpoint_is_for_convert(tmp_path: Path) -> None:
    for config in ({}, {"quantization_config": COMPRESSED}):
        write_checkpoint(tmp_path, LLAMA | config)
        with pytest.raises(ArgumentError, match=r"not quantized.*'int8conv convert'"):
            find_packed(open_checkpoint(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e-37])
def test_scales_that_the_format_does_not_have(tmp_path: Path, value: float) -> None:
    absmax = torch.ones(64)
    absmax[0], absmax[7] = -0.0, value
    write_packed(tmp_path, bitsandbytes_tensors, others=broken("SCB", absmax))
    linear = find_packed(open_checkpoint(tmp_path)).linears[Q]
    with pytest.raises(NumberError, match=rf"{Q}\.SCB.*row 7"):
        linear.scales()
