"""The experts of a layer as one operator of PyTorch, ``torch.ops.int8conv.mixed_experts``; needs no vLLM.

Which experts are used is only known when it runs: ``torch.compile`` sees the operator as a whole, and a device is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ..kernels.dispatch import check_mode
from ..kernels.torch_operator import mixed_weight, multiply
from ..kernels.weight import MixedWeight
from ..runtime.backends import torch_backend

_ACTIVATIONS: Final = {str(name): act for name, act in torch_backend.ACTIVATIONS.items()}
UNGATED: Final = "_no_mul"
"""How vLLM's names of activations end if nothing is multiplied by them."""
NO_THRESHOLD: Final = -1.0
"""A threshold that is None: operators take lists of numbers only."""


def knows(activation: str) -> bool:
    """Whether experts can have an activation, by vLLM's name for it."""
    return activation.removesuffix(UNGATED) in _ACTIVATIONS


@torch.library.custom_op("int8conv::mixed_experts", mutates_args=())
def mixed_experts(
    x: Tensor,
    chosen: Tensor,
    shares: Tensor,
    wide: Sequence[Tensor],
    wide_columns: Sequence[int],
    wide_thresholds: Sequence[float],
    down: Sequence[Tensor],
    down_columns: Sequence[int],
    down_thresholds: Sequence[float],
    activation: str,
    mode: str | None,
) -> Tensor:
    """``sum over used e of share_e * down_e(act(gate_e(x)) * up_e(x))``: float ``[tokens, hidden]`` -> the same.

    Args:
        x: float ``[tokens, hidden]``.
        chosen: int ``[tokens, used]``, numbers of experts; below 0: of another rank.
        shares: float32 ``[tokens, used]``.
        wide: of all experts, the first linear, ``[gate; up]`` if gated: codes ``[e, out, in, 1]``, scales ``[e, out]``, numbers of outlier
            columns ``[e, k]``, those columns ``[e, out, k]``, where k is the largest of all experts' (possibly 0).
        wide_columns: each expert's own k.
        wide_thresholds: each expert's, as in the manifest; ``NO_THRESHOLD`` for None.
        down: likewise.
        down_columns: likewise.
        down_thresholds: likewise.
        activation: vLLM's name.
        mode: as for ``mixed_linear``.
    """
    check_mode(mode)
    act, gated = _ACTIVATIONS[activation.removesuffix(UNGATED)], not activation.endswith(UNGATED)
    y = x.new_zeros(x.shape, dtype=torch.float32)
    for expert in chosen.unique().tolist():  # type: ignore[no-untyped-call]
        if expert < 0:
            continue
        token, place = torch.where(chosen == expert)
        first = _weight(wide, expert, wide_columns, wide_thresholds)
        second = _weight(down, expert, down_columns, down_thresholds)
        inner = multiply(x[token], first, None, mode)  # type: ignore[arg-type]  # checked
        if gated:
            gate, up = inner.chunk(2, dim=-1)
            inner = act(gate) * up
        else:
            inner = act(inner)
        out = multiply(inner, second, None, mode)  # type: ignore[arg-type]
        y.index_add_(0, token, out.float() * shares[token, place, None])
    return y.to(x.dtype)


@mixed_experts.register_fake
def _(
    x: Tensor, chosen: Tensor, shares: Tensor, wide: Sequence[Tensor], wide_columns: Sequence[int], wide_thresholds: Sequence[float],
    down: Sequence[Tensor], down_columns: Sequence[int], down_thresholds: Sequence[float], activation: str, mode: str | None,
) -> Tensor:  # fmt: skip
    return torch.empty_like(x)


def _weight(
    stacks: Sequence[Tensor], expert: int, columns: Sequence[int], thresholds: Sequence[float]
) -> MixedWeight:
    codes, scale, index, kept = (stack[expert] for stack in stacks)
    count, threshold = columns[expert], thresholds[expert]
    of_all = None if threshold == NO_THRESHOLD else threshold
    if not count:
        return mixed_weight(codes, scale, None, None, of_all)
    return mixed_weight(codes, scale, index[:count], kept[:, :count].contiguous(), of_all)
