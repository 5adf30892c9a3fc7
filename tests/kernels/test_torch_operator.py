"""The operator: its fake, its gradient, and no break in a compiled graph."""

from __future__ import annotations

import pytest
import torch

from int8conv.kernels.torch_operator import mixed_linear_op

from ..hf.test_linear import activations, make_linear


@pytest.mark.parametrize("outliers", [True, False])
def test_the_operator_holds_what_it_declares(outliers: bool) -> None:
    linear = make_linear(outliers=outliers, bias=outliers)
    arguments = (
        linear.weight,
        linear.weight_scale,
        linear.outlier_index,
        linear.outlier_weight,
        linear.bias,
        2.0,
        "w8a8",
    )
    torch.library.opcheck(mixed_linear_op, (activations(2, 3), *arguments))
    torch.library.opcheck(
        mixed_linear_op, (activations(4).requires_grad_(), *arguments),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip


def test_a_compiled_linear_is_one_graph_and_trains() -> None:
    linear = make_linear()
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    x, twin = activations(6).requires_grad_(), activations(6).requires_grad_()
    y = compiled(x)
    assert torch.equal(y, linear(twin))
    y.square().sum().backward()
    linear(twin).square().sum().backward()
    assert x.grad is not None
    assert twin.grad is not None
    torch.testing.assert_close(x.grad, twin.grad)
    assert compiled(activations(0)).shape == (0, 20)
