"""Compensated rounding (GPTQ, arXiv:2210.17323): the rounding error of a column is made up for by columns that are rounded later.

For a row ``w`` of a weight and inputs ``x``, the error of the output is ``sum (x . (w - v))^2 = |R (w - v)|^2``, where ``v`` is
the dequantized row and ``R`` the upper Cholesky factor of ``H = sum x x^T``. Columns are rounded from the last to the first: with

    t_j = w_j + sum over i > j of (w_i - v_i) R_ji / R_jj        v_j = scale * rint(t_j / scale)

the part of the error that row ``j`` of ``R`` stands for becomes as small as one code allows. This is GPTQ's recursion in the order
of Babai's nearest plane (arXiv:2507.18553), which needs one factorization and no inverse. Columns are ordered by ``H_jj``, largest
last. Outlier columns are exact and take no part. ``H`` is damped, since a text of some thousand tokens knows little about most
of its directions. No code moves further than ``MOST_STEPS`` from the one that is nearest, which ``inspect --against`` checks.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from ...formats.int8.names import MOST_STEPS
from ...kernels.cpu import jit

LEAST_DAMPING: Final = 0.01
"""Fraction of the mean of ``H``'s diagonal that is added to it; GPTQ's, for many tokens."""
DAMPING: Final = 0.5
"""The same, for as many tokens as columns: few tokens say little about how columns relate on other texts (docs/fidelity.md)."""
_WIDE: Final = 2048
"""Width from which there are more columns between two matrix products: there memory is what they wait for."""
_COMPILED: Final = 64
"""Columns between two matrix products where numba compiles what is between them."""
_ROWS: Final = 2048
"""Rows in work at once; a constant, since products of other shapes may be summed in another order."""


class Gram:
    """``H`` of one input: ``x^T x`` over the tokens added; the tokens themselves as long as they take less memory."""

    def __init__(self) -> None:
        self.tokens = 0
        """All that were added."""
        self._parts: list[Tensor] = []
        self._sum: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Add activations float32 ``[tokens, in]``."""
        self._parts.append(x)
        self.tokens += len(x)
        if sum(map(len, self._parts)) > x.shape[1]:
            self._sum = self.matrix()
            self._parts = []

    def matrix(self) -> Tensor:
        """``H``, float32 ``[in, in]``; may be changed by the caller, and is computed anew by the next call."""
        x = torch.cat(self._parts) if self._parts else None
        if x is None:
            assert self._sum is not None
            return self._sum.clone()
        return x.t() @ x if self._sum is None else torch.addmm(self._sum, x.t(), x)


def damping_for(width: int, tokens: int) -> float:
    """The damping of an input of ``width`` columns, seen at so many tokens."""
    return max(LEAST_DAMPING, DAMPING * width / max(tokens, 1))


class Compensation:
    """What the rounding of all linears of an input has in common: the order of its columns, and a factor of ``H``.

    Args:
        gram: ``H``, float32 ``[in, in]``.
        columns: outlier columns, int64 ``[k]``.
        damping: see ``damping_for``.
    """

    def __init__(self, gram: Tensor, columns: Tensor, damping: float) -> None:
        inner = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
        inner[columns] = False
        rest = inner.nonzero()[:, 0]
        self._order = rest[gram.diagonal()[rest].argsort(stable=True)]
        h = gram[self._order[:, None], self._order]
        self._factor = _unit_factor(h, damping)

    def codes(self, weight: Tensor, scale: Tensor, most_steps: int = MOST_STEPS) -> Tensor:
        """Codes int8 ``[out, in]``, zero in outlier columns.

        Args:
            weight: float32 ``[out, in]``, finite.
            scale: row scales float32 ``[out]``; rows whose scale is 0 get the code 0.
            most_steps: largest distance from the code of nearest rounding.
        """
        codes = torch.zeros(weight.shape, dtype=torch.int8, device=weight.device)
        divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
        for first in range(0, len(weight), _ROWS):
            rows = slice(first, min(first + _ROWS, len(weight)))
            exact = (weight[rows][:, self._order] / divisor[rows, None]).t().contiguous()
            codes[rows, self._order] = self._round(exact, most_steps).t().to(torch.int8)
        return codes

    def _round(self, exact: Tensor, most_steps: int) -> Tensor:
        """Codes in the order of work, as float32 ``[in, rows]``, for weights in units of their scales."""
        factor, count = self._factor, len(exact)
        codes, error = torch.empty_like(exact), torch.empty_like(exact)
        is_compiled = exact.device.type == "cpu" and jit.available()
        block = _COMPILED if is_compiled else 32 if count <= _WIDE else 128
        round_columns = jit.round_columns if is_compiled else _round_columns
        for last in range(count, 0, -block):
            part = slice(max(last - block, 0), last)
            aim = exact[part].clone()
            if last < count:
                aim.addmm_(factor[last:, part].t(), error[last:])
            round_columns(
                aim, factor[part, part], exact[part], most_steps, codes[part], error[part]
            )
        return codes


def _round_columns(
    aim: Tensor, factor: Tensor, exact: Tensor, most_steps: int, codes: Tensor, error: Tensor
) -> None:
    """``kernels/cpu/jit_rounding.py`` with PyTorch's operators, on any device."""
    nearest = exact.round()
    lowest = (nearest - most_steps).clamp_(min=-127)
    highest = (nearest + most_steps).clamp_(max=127)
    for j in range(len(aim) - 1, -1, -1):
        if j + 1 < len(aim):
            aim[j].addmv_(error[j + 1 :].t(), factor[j + 1 :, j])
        torch.round(aim[j], out=codes[j])
        torch.clamp(codes[j], lowest[j], highest[j], out=codes[j])
        torch.sub(exact[j], codes[j], out=error[j])


def _unit_factor(h: Tensor, damping: float) -> Tensor:
    """``R^T`` of ``H`` with a diagonal of ones, lower triangular; ``h`` is overwritten. More damping where the least does not suffice."""
    diagonal = h.diagonal()
    mean = float(diagonal.mean()) if len(h) else 0.0
    if not 0 < mean < float("inf"):  # no token came by, or only zeros; or beyond float32
        return torch.eye(len(h), device=h.device)
    h /= mean
    diagonal += damping
    factor, failed = torch.linalg.cholesky_ex(h)
    while int(failed):
        diagonal += damping
        damping *= 2
        factor, failed = torch.linalg.cholesky_ex(h)
    unit: Tensor = factor / factor.diagonal().clone()
    return unit
