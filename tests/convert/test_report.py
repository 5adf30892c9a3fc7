"""What a report says of linears: their error, the share of their outlier columns, which of them are flagged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from int8conv.convert.plan import KeepTask, Plan, QuantizeTask
from int8conv.convert.report import ConvertReport, LinearQuality, measured
from int8conv.convert.stream import TaskResult
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.source.checkpoint import StoredTensor
from int8conv.formats.source.matrix import Matrix


def matrix(name: str, out: int, in_features: int) -> Matrix:
    return Matrix(StoredTensor(name, "F16", (out, in_features), LocalFile(Path("x")), 0, 2 * out * in_features))  # fmt: skip
