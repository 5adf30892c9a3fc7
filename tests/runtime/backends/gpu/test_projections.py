"""Linears of one input on a GPU, in the interpreter, and what they leave to their reader, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from int8conv.kernels.dispatch import MODES, Mode
from int8conv.kernels.gpu import reference
from int8conv.kernels.gpu.linear import Operand
from int8conv.kernels.gpu.prologue import Prologue
from int8conv.runtime.backends.gpu.deferred import Deferred
from int8conv.runtime.backends.gpu.projections import (
    DenseProjection,
    QuantizedProjection,
    SplitDeviceProjection,
)

from ....kernels.gpu.tensors import dense, make_weight

pytestmark = pytest.mark.usefixtures("few_programs")

G = torch.Generator().manual_seed(0)
X = torch.randn(2, 2, 64, generator=G).half()
WEIGHT = make_weight(32, 64, 16)
BIAS = torch.randn(32, generator=G).half()
DENSE = (torch.randn(3, 16, 64, generator=G) / 8).half()


def close(found: Tensor, expected: Tensor, mode: str = "w8a16") -> None:
    """Within float16's rounding; with codes of activations, within theirs."""
    limit = 0.02 if mode == "w8a8" else 2e-3
    assert found.dtype == torch.float16
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= limit * expected.abs().max()


def product(weight: Tensor, x: Tensor = X) -> Tensor:
    return x.double() @ weight.double().t()


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_an_int8_matrix_are_several_linears(mode: Mode) -> None:
    truth = product(dense(WEIGHT)) + BIAS.double()
    found = QuantizedProjection(WEIGHT, BIAS, (20, 12), mode)(X)
    assert [y.shape for y in found] == [(2, 2, 20), (2, 2, 12)]
    close(torch.cat(tuple(found), dim=-1), truth, mode)
    residual = torch.randn(2, 2, 32, generator=G).half()
    (y,) = QuantizedProjection(WEIGHT, BIAS, [32], mode)(X, residual=residual)
    close(y, truth + residual.double(), mode)


def test_what_was_deferred_is_done_on_the_way() -> None:
    later = Deferred(Operand(X.view(4, 64), Prologue(activation="relu")), (2, 2, 64))
    for projection, weight in (
        (QuantizedProjection(WEIGHT, None, [32], "w8a16"), dense(WEIGHT)),
        (DenseProjection([(DENSE[0], None)]), DENSE[0]),
    ):
        (y,) = projection(later)
        close(y, product(weight, F.relu(X)))


@pytest.mark.parametrize("mode", MODES)
def test_inner_states_of_an_int8_matrix(mode: Mode) -> None:
    """Gate and up in one, or up alone, whose function waits for its reader."""
    y = product(dense(WEIGHT), X.view(4, 64))
    projection = QuantizedProjection(WEIGHT, None, [16, 16], mode)
    gate, up = y.chunk(2, dim=1)
    found = projection.inner(Operand(X.view(4, 64)), "silu", True)
    assert found.prologue.is_empty == (mode == "w8a16")
    close(found.value(), F.silu(gate) * up, mode)
    found = projection.inner(Operand(X.view(4, 64)), "relu", False)
    assert found.prologue == Prologue(activation="relu")
    close(found.value(), F.relu(y), mode)


def test_dense_linears() -> None:
    bias = BIAS[:16]
    projection = DenseProjection([(DENSE[0], None), (DENSE[1].float(), bias)])
    found = projection(X)
    close(found[0], product(DENSE[0]))
    close(found[1], product(DENSE[1]) + bias.double())
    residual = torch.randn(2, 2, 16, generator=G).half()
    (y,) = DenseProjection([(DENSE[0], bias)])(X, residual=residual)
    close(y, product(DENSE[0]) + bias.double() + residual.double())


@pytest.mark.parametrize("kind", ["two", "one", "up"])
def test_inner_states_of_dense_linears(kind: str) -> None:
    gate, up = DENSE[0], DENSE[1]
    pairs: Any = {"two": [(gate, None), (up, None)], "one": [(torch.cat([gate, up]), None)], "up": [(up, None)]}[kind]  # fmt: skip
    found = DenseProjection(pairs).inner(Operand(X.view(4, 64)), "gelu", kind != "up")
    assert found.prologue.activation == "gelu"
    assert (found.prologue.times is None) == (kind == "up")
    first, second = product(gate, X.view(4, 64)), product(up, X.view(4, 64))
    close(found.value(), F.gelu(second) if kind == "up" else F.gelu(first) * second)


def test_parts_that_are_not_one_matrix() -> None:
    """The first linear is the gate, whichever part it is of."""
    parts = [DenseProjection([(DENSE[0], None)]), DenseProjection([(DENSE[1], None)])]
    split = SplitDeviceProjection(parts, (1, 0))
    close(split(X)[0], product(DENSE[1]))
    later = Operand(X.view(4, 64), Prologue(activation="relu"))
    found = split.inner(later, "silu", True)
    x = F.relu(X.view(4, 64))
    close(found.value(), F.silu(product(DENSE[1], x)) * product(DENSE[0], x))


def test_the_mode_may_follow_from_the_tokens() -> None:
    (found,) = QuantizedProjection(WEIGHT, None, [32], None)(X)
    assert torch.equal(found, QuantizedProjection(WEIGHT, None, [32], "w8a16")(X)[0])
    expected = reference.w8a16(X.view(4, 64), WEIGHT).view(2, 2, 32)
    close(found, expected.double())
