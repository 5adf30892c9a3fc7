"""An activation as a tensor, whether something is still to be done to it or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from int8conv.runtime.backends.parts import DeferredTensor, tensor_of


class Doubled(DeferredTensor):
    """Twice a tensor, once somebody asks."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.asked = 0

    def value(self) -> Tensor:
        self.asked += 1
        return self.x * 2


def test_a_tensor_is_itself() -> None:
    x = torch.ones(1, 2, 3)
    assert tensor_of(x) is x


def test_what_is_deferred_is_done_when_it_is_asked_for() -> None:
    later = Doubled(torch.ones(1, 2, 3))
    assert later.asked == 0
    assert torch.equal(tensor_of(later), torch.full((1, 2, 3), 2.0))
    assert later.asked == 1


def test_a_backend_has_to_say_how() -> None:
    with pytest.raises(TypeError, match="abstract"):
        DeferredTensor()  # type: ignore[abstract]
