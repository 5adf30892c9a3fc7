"""An activation to which a norm or function is still to be applied: as rows, and as the tensor that it stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from int8conv.kernels.gpu.linear import Operand
from int8conv.kernels.gpu.prologue import Prologue
from int8conv.runtime.backends.gpu.deferred import Deferred, operand_of
from int8conv.runtime.backends.parts import tensor_of

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).half()


def test_its_value_has_it_applied() -> None:
    later = Deferred(Operand(X.reshape(6, 8), Prologue(activation="relu")), (2, 3, 8))
    assert torch.equal(tensor_of(later), F.relu(X))
    plain = Deferred(Operand(X.reshape(6, 8)), (2, 3, 8))
    assert torch.equal(plain.value(), X)


def test_rows_keep_what_is_still_to_be_done() -> None:
    operand = Operand(X.reshape(6, 8), Prologue(activation="relu"))
    rows, shape = operand_of(Deferred(operand, (2, 3, 8)))
    assert rows is operand
    assert shape == (2, 3)


@pytest.mark.parametrize("x", [X, X.transpose(0, 1), X[:, :1], X[0, 0]], ids=lambda x: str(list(x.shape)))  # fmt: skip
def test_rows_of_a_tensor(x: torch.Tensor) -> None:
    rows, shape = operand_of(x)
    assert rows.prologue.is_empty
    assert (rows.x.ndim, shape) == (2, tuple(x.shape[:-1]))
    assert torch.equal(rows.x.view(x.shape), x)
