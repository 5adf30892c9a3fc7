# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, call-arg"
"""Columns of a weight rounded one after another, compiled by numba: the steps of ``convert/rounding/compensate.py`` within a block."""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit_cache import compiled

_AT_ONCE = 256
"""Rows in work at once: with the errors of a block of 64 columns they stay in a second-level cache."""


@compiled(parallel=True)
def round_columns(aim, factor, exact, most, codes, error):
    """From the last column to the first: ``aim_j += sum over i > j of factor_ij error_i``, round, ``error_j = exact_j - code_j``.

    aim, exact, codes, error: float32 ``[columns, rows]``; factor: float32 ``[columns, columns]``. A code is at most ``most`` from the
    nearest one of ``exact``, and at most 127.
    """
    columns, rows = aim.shape
    for part in prange(-(-rows // _AT_ONCE)):
        first, end = part * _AT_ONCE, min((part + 1) * _AT_ONCE, rows)
        for j in range(columns - 1, -1, -1):
            for i in range(j + 1, columns):
                weight = factor[i, j]
                for r in range(first, end):
                    aim[j, r] += weight * error[i, r]
            for r in range(first, end):
                nearest = np.rint(exact[j, r])
                lowest = max(nearest - most, np.float32(-127))
                highest = min(nearest + most, np.float32(127))
                code = min(max(np.rint(aim[j, r]), lowest), highest)
                codes[j, r] = code
                error[j, r] = exact[j, r] - code
