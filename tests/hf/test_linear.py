"""``Int8convLinear`` as a module: casts, copies, state, gradients."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from int8conv.errors import ArgumentError
from int8conv.hf.linear import Int8convLinear, int8_linears, set_mode
from int8conv.kernels.dispatch import mixed_linear

COLUMNS = torch.arange(0, 48, 3, dtype=torch.int32)


def make_linear(
    *, outliers: bool = True, bias: bool = True, threshold: float | None = 2.0
) -> Int8convLinear:
    torch.manual_seed(0)
    k = 16 if outliers else 0
    linear = Int8convLinear(
        48, 20, bias=bias, outliers=k, half=torch.float16 if k else None, threshold=threshold
    )
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-127, 128, linear.weight.shape))
        linear.weight_scale.uniform_(0.001, 0.01)
        if linear.outlier_index is not None and linear.outlier_weight is not None:
            linear.weight[:, COLUMNS.long()] = 0
            linear.outlier_index.copy_(COLUMNS)
            linear.outlier_weight.normal_()
        if linear.bias is not None:
            linear.bias.normal_()
    return linear


def activations(*shape: int) -> Tensor:
    return torch.randn(*shape, 48, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("mode", ["w8a8", "w8a16", None])
@pytest.mark.parametrize("threshold", [2.0, 0.0, None])
def test_it_multiplies_as_the_kernels_do(mode: str | None, threshold: float | None) -> None:
    linear = make_linear(threshold=threshold)
    linear.mode = mode  # type: ignore[assignment]
    x = activations(2, 20)
    assert torch.equal(linear(x), mixed_linear(x, linear.mixed(), linear.bias, mode=linear.mode))
    assert linear.mixed().activation_bits == (16 if threshold == 0 else 8)


@pytest.mark.parametrize(
    "cast",
    [nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda m: m.to("cpu", torch.float16)],
)
def test_casts_leave_the_tensors_of_the_format_alone(cast: object) -> None:
    linear, before = make_linear(), make_linear()
    wanted = make_linear().bias
    cast(linear)  # type: ignore[operator]
    for name, tensor in before.state_dict().items():
        if name != "bias":
            assert linear.state_dict()[name].dtype == tensor.dtype
            assert torch.equal(linear.state_dict()[name], tensor)
    assert wanted is not None
    assert linear.bias.dtype != wanted.dtype
    x = activations(3).to(linear.bias.dtype)
    assert linear(x).dtype == x.dtype


def test_copies_and_state() -> None:
    linear, x = make_linear(), activations(4)
    y = linear(x)
    twin = copy.deepcopy(linear)
    buffer = io.BytesIO()
    torch.save(linear, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    other = make_linear()
    with torch.no_grad():
        for tensor in (other.weight, other.weight_scale):
            tensor.zero_()
    assert not torch.equal(other(x), y)
    other.load_state_dict(linear.state_dict())
    for found in (twin, loaded, other):
        assert torch.equal(found(x), y)
    twin.weight.data = torch.zeros_like(twin.weight)  # as offloading does
    assert not torch.equal(twin(x), y)
    assert sorted(linear.state_dict()) == [
        "bias",
        "outlier_index",
        "outlier_weight",
        "weight",
        "weight_scale",
    ]
    assert sorted(make_linear(outliers=False, bias=False).state_dict()) == [
        "weight",
        "weight_scale",
    ]
    assert "in_features=48, out_features=20, bias=True, outliers=16, threshold=2.0" in repr(linear)


@pytest.mark.parametrize("outliers", [True, False])
def test_gradients_are_those_of_the_dequantized_weight(outliers: bool) -> None:
    linear = make_linear(outliers=outliers)
    linear.mode = "w8a8"
    x = activations(2, 5).requires_grad_()
    dense = nn.Linear(48, 20)
    dense.weight.data = linear.dequantized()
    twin = x.detach().clone().requires_grad_()
    weights = torch.randn(2, 5, 20)
    (linear(x) * weights).sum().backward()
    (dense(twin) * weights).sum().backward()
    assert x.grad is not None
    assert twin.grad is not None
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-5, atol=1e-5)
    assert linear.bias.grad is not None
    torch.testing.assert_close(linear.bias.grad, dense.bias.grad, rtol=1e-5, atol=1e-5)
    assert linear.weight.grad is None


def test_modes_of_a_model() -> None:
    model = nn.Sequential(make_linear(), nn.Linear(20, 3))
    set_mode(model, "w8a8")
    assert [linear.mode for linear in int8_linears(model).values()] == ["w8a8"]
    with pytest.raises(ArgumentError, match="mode: expected w8a8 or w8a16, found 'int4'"):
        set_mode(model, "int4")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="none in Linear"):
        set_mode(nn.Linear(2, 2), None)
