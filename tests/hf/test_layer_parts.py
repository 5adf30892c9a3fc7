"""The weights of linears that share an input, as one matrix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from int8conv.hf.layer_parts import _projection, _rows
from int8conv.hf.linear import Int8convLinear, int8_linears

from .models import load

Family = Callable[[str], Path]


def test_rows_that_follow_each_other_are_not_copied() -> None:
    whole = torch.arange(60, dtype=torch.int32).view(10, 6)
    parts = [whole[:3], whole[3:4], whole[4:]]
    found = _rows(parts)
    assert torch.equal(found, whole)
    assert found.data_ptr() == whole.data_ptr()
    for others in ([whole[:3], whole[4:]], [whole[4:], whole[:4]]):
        found = _rows(others)
        assert torch.equal(found, torch.cat(others))
        assert found.data_ptr() != others[0].data_ptr()


def linears(outliers: int = 4, shift: int = 0) -> list[Int8convLinear]:
    made = []
    for number, rows in enumerate((3, 2)):
        linear = Int8convLinear(8, rows, bias=True, outliers=outliers, half=torch.float16)
        linear.weight.data.random_(-127, 128)
        linear.weight_scale.fill_(number + 1)
        assert linear.outlier_index is not None
        assert linear.outlier_weight is not None
        linear.outlier_index.copy_(torch.arange(outliers) + number * shift)
        linear.outlier_weight.normal_()
        made.append(linear)
    return made


def weights(made: list[Int8convLinear]) -> list[Tensor]:
    return [linear.dequantized() for linear in made]


def test_copied_rows_replace_the_linears_own() -> None:
    made = linears()
    before = weights(made)
    parameter = made[1].weight
    found = _projection(made)
    assert found is not None
    assert found.bias is not None
    assert found.bias.tolist() == [b for linear in made for b in linear.bias.tolist()]
    assert made[1].weight is parameter
    assert parameter.data_ptr() == found.weight.codes[3:].data_ptr()
    assert parameter.shape == (2, 8, 1)
    for old, new in zip(before, weights(made), strict=True):
        assert torch.equal(old, new)


def test_inputs_with_other_columns_are_not_one() -> None:
    assert _projection(linears(shift=1)) is None
    assert _projection(linears(shift=0)) is not None


def test_a_mapped_file_is_not_copied(family: Family) -> None:
    model = load(family("llama"))
    attention = model.model.layers[0].self_attn
    made = [attention.q_proj, attention.k_proj, attention.v_proj]
    assert all(linear in int8_linears(model).values() for linear in made)
    first = made[0].weight.data_ptr()
    found = _projection(made)
    assert found is not None
    assert made[0].weight.data_ptr() == first
    expected = torch.cat([linear.weight.squeeze(-1) for linear in made])
    assert torch.equal(found.weight.codes, expected)
