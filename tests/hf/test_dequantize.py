"""Dequantizing on load: the order of experts, with and without outlier columns, and how stacks lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from int8conv.errors import UnsupportedFeatureError
from int8conv.hf.dequantize import Dequantize, DequantizeAlone, converters, dequantizing
from int8conv.hf.places import Places

from .models import DEQUANTIZES
from .test_linear import make_linear

pytestmark = pytest.mark.skipif(not DEQUANTIZES, reason="of transformers 5.21 and newer")


class Counts:
    """Experts with odd numbers have columns."""

    def outliers_of(self, path: str) -> int:
        return 16 * (int(path.rpartition(".")[2]) % 2)


class Model(nn.Module):
    """A stack of experts ``[experts, ...]``, or a matrix."""

    def __init__(self, *shape: int, is_transposed: bool | None = None) -> None:
        super().__init__()
        self.experts = nn.Module()
        self.experts.up = nn.Parameter(torch.empty(shape, dtype=torch.bfloat16))
        if is_transposed is not None:
            self.experts.is_transposed = is_transposed

    def get_parameter_or_buffer(self, name: str) -> Tensor:
        return self.get_parameter(name)


def stored(count: int, pattern: str = "p.") -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """Tensors by pattern as transformers collects them, and the weights that they stand for."""
    sources: dict[str, list[Tensor]] = {}
    weights = []
    for number in range(count):
        linear = make_linear(outliers=number % 2 == 1)
        linear.weight_scale.mul_(number + 1)
        weights.append(linear.dequantized())
        for kind, tensor in linear.state_dict().items():
            if kind != "bias":
                sources.setdefault(pattern + kind, []).append(tensor)
    return sources, weights


def test_experts_with_and_without_columns_and_in_16_bits() -> None:
    sources, weights = stored(4)
    plain = torch.randn(20, 48, dtype=torch.float16)
    sources["p.weight"].insert(2, plain)
    weights.insert(2, plain)
    operation = Dequantize(Counts(), {("experts.up", "p.weight"): [f"x.{i}" for i in range(4)]})
    found = operation.convert(sources, "experts.up", Model(5, 20, 48))
    assert list(found) == ["p.weight"]
    for weight, expected in zip(found["p.weight"], weights, strict=True):
        assert torch.equal(weight, expected.bfloat16())


@pytest.mark.parametrize("shape", [(3, 20, 48), (3, 48, 20)])
def test_a_stack_is_turned_where_the_model_has_it_so(shape: tuple[int, ...]) -> None:
    sources, weights = stored(3)
    operation = DequantizeAlone(Counts(), [f"x.{i}" for i in range(3)])
    (found,) = operation.convert(sources, "experts.up", Model(*shape))["experts.up"]
    stack = torch.stack(weights).bfloat16()
    assert torch.equal(found, stack if shape[1] == 20 else stack.transpose(1, 2))


@pytest.mark.parametrize("transposed", [True, False, None])
def test_square_experts_lie_as_the_model_says(transposed: bool | None) -> None:
    codes = torch.randint(-127, 128, (2, 48, 48, 1), dtype=torch.int8)
    sources = {"p.weight": list(codes), "p.weight_scale": [torch.ones(48)] * 2}
    operation, model = (
        DequantizeAlone(Counts(), ["x.0", "x.2"]),
        Model(2, 48, 48, is_transposed=transposed),
    )
    if transposed is None:
        with pytest.raises(UnsupportedFeatureError, match="square experts"):
            operation.convert(sources, "experts.up", model)
        return
    (found,) = operation.convert(sources, "experts.up", model)["experts.up"]
    expected = codes.squeeze(-1).bfloat16()
    assert torch.equal(found, expected.transpose(1, 2) if transposed else expected)


def test_a_matrix_alone() -> None:
    sources, weights = stored(1)
    found = DequantizeAlone(Counts(), ["x.0"]).convert(sources, "experts.up", Model(20, 48))
    assert torch.equal(found["experts.up"][0], weights[0].bfloat16())


def test_converters_match_the_tensors_of_their_parameter_alone() -> None:
    from transformers.core_model_loading import MergeModulelist, WeightConverter

    places = Places({}, {"a.embed": "a.embed"}, {"m.1.experts.up": ["m.1.experts.up.0"]})
    renamed: dict[str, Any] = {}
    for converter in converters(Counts(), places):
        for name in ("a.embed.weight", "a.embed.outlier_index", "a.embedding.weight", "m.1.experts.up.12.weight_scale",
                     "m.11.experts.up.1.weight", "m.1.experts.up.weight"):  # fmt: skip
            found, pattern = converter.rename_source_key(name)
            if pattern is not None:
                renamed[name] = found
    assert renamed == {
        "a.embed.weight": "a.embed.weight", "a.embed.outlier_index": "a.embed.weight",
        "m.1.experts.up.12.weight_scale": "m.1.experts.up",
    }  # fmt: skip
    plain = WeightConverter("experts.*.w2.weight", "experts.down", [MergeModulelist(dim=0)])
    assert dequantizing(plain, Counts(), places) is plain
    fused = Places({}, fused={("x", plain.source_patterns[0]): ["experts.0.w2"]})
    changed = dequantizing(plain, Counts(), fused)
    assert changed.rename_source_key("l.experts.3.w2.outlier_weight")[0] == "l.experts.down"
    assert isinstance(changed.operations[0], Dequantize)
