"""The tensors of a layer in vLLM. ``make test-vllm``."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from int8conv.formats.int8.section import Group
from int8conv.kernels import reference
from int8conv.kernels.torch_operator import mixed_weight
from int8conv.vllm.linear import Int8convLinearMethod


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process group, which vLLM's parameters ask for their rank."""
    for name, value in (("rank", 0), ("world_size", 1)):
        monkeypatch.setattr(f"vllm.model_executor.parameter.get_tensor_model_parallel_{name}", lambda v=value: v)  # fmt: skip


@pytest.mark.parametrize("outliers", [0, 4])
def test_a_layer(outliers: int) -> None:
    group = Group(("a",), outliers, "F16" if outliers else None, 6.0)
    method = Int8convLinearMethod(group, "w8a16")
    layer = torch.nn.Module()
    method.create_weights(layer, 32, [5, 3], 32, 8, torch.float32, weight_loader=lambda *_: None)
    assert layer.weight.shape == (8, 32, 1)
    layer.weight.data.random_(-127, 128)
    layer.weight_scale.data.fill_(0.01)
    if outliers:
        layer.outlier_index.data.copy_(torch.arange(outliers))
        layer.outlier_weight.data.normal_()
        layer.weight.data[:, :outliers] = 0
    method.process_weights_after_loading(layer)
    assert (layer.outlier_index is None) == (not outliers)
    x = torch.randn(3, 32)
    weight = mixed_weight(layer.weight, layer.weight_scale, layer.outlier_index, layer.outlier_weight, 6.0)  # fmt: skip
    expected = reference.w8a16(x, weight)
    torch.testing.assert_close(method.apply(layer, x), expected, rtol=1e-4, atol=1e-4)
    assert SimpleNamespace(**dict(layer.named_parameters())).weight.dtype == torch.int8
