"""The conversion plan: what becomes of each tensor, and in which order, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedDtypeError
from ..formats.int8.layout import Run, TensorSpec, Unit
from ..formats.int8.manifest import InputGroup
from ..formats.int8.names import BIAS, KINDS, OUTLIER_INDEX, OUTLIER_WEIGHT, SCALE, WEIGHT
from ..formats.safetensors.stored import StoredTensor
from ..formats.source.matrix import Matrix
from .options import ConvertOptions
from .outliers.rule import NO_OUTLIERS, OutlierChoice
from .outliers.selection import Group, Kept, Selection


@dataclass(frozen=True)
class QuantizeTask:
    """A linear's weight to quantize; ``half`` is the dtype of its outlier columns."""

    path: str
    source: Matrix
    columns: npt.NDArray[np.int32]
    half: str
    kind: str

    @property
    def becomes(self) -> str:
        return "int8"


@dataclass(frozen=True)
class KeepTask:
    """A tensor that stays in 16 bits, rounded to ``dtype`` if the source has 32."""

    name: str
    source: StoredTensor | Matrix
    dtype: str
    kind: str

    @property
    def becomes(self) -> str:
        return self.dtype


Task = QuantizeTask | KeepTask

_ROUNDED: Final = {"F32", "F64"}
"""Source dtypes that are rounded to 16 bits."""


@dataclass(frozen=True)
class Plan:
    """Tasks in the order of the output."""

    tasks: tuple[Task, ...]
    units: tuple[Unit, ...]
    """What stands together, for the layout."""
    inputs: tuple[InputGroup, ...]
    skipped: dict[str, str]
    """Source tensors that are left out, and why."""

    @property
    def source_bytes(self) -> int:
        return sum(task.source.nbytes for task in self.tasks)


def make_plan(
    selection: Selection, outliers: Mapping[str, OutlierChoice], options: ConvertOptions
) -> Plan:
    """Plan the conversion of a source.

    Args:
        selection: what becomes int8 and what stays.
        outliers: the choice for each input, by the group's ``input``; none where absent.
        options: among them the 16-bit type for tensors that the source has in F32 or FP8.

    Raises:
        UnsupportedDtypeError: linears that share an input differ.
    """
    tasks: list[Task] = []
    units: list[Unit] = []
    inputs: list[InputGroup] = []
    half = options.half
    for item in selection.items:
        if isinstance(item, Kept):
            kept = KeepTask(item.name, item.source, _half(item.source, half), item.kind)
            tasks.append(kept)
            units.append(((_spec(kept),),))
            continue
        paths = tuple(linear.path for linear in item.linears)
        choice = outliers.get(item.input, NO_OUTLIERS)
        group, biases = _group_tasks(item, choice, half)
        _check_same_dtype([(task.source, task.half) for task in group])
        _check_same_dtype([(task.source, task.dtype) for task in biases])
        tasks += [*group, *biases]
        units.append(_group_unit(group, biases))
        in_features = item.linears[0].weight.shape[1]
        inputs.append(InputGroup(paths, in_features, len(choice.columns), choice.threshold))
    return Plan(tuple(tasks), tuple(units), tuple(inputs), selection.skipped)


def _group_tasks(
    group: Group, choice: OutlierChoice, half: str
) -> tuple[list[QuantizeTask], list[KeepTask]]:
    weights, biases = [], []
    weight_half = _shared_half([x.weight for x in group.linears], half)
    bias_half = _shared_half([x.bias for x in group.linears if x.bias is not None], half)
    for x in group.linears:
        dtype = _half(x.weight, weight_half)
        weights.append(QuantizeTask(x.path, x.weight, choice.columns, dtype, group.kind))
        if x.bias is not None:
            name, dtype = f"{x.path}.{BIAS}", _half(x.bias, bias_half)
            biases.append(KeepTask(name, x.bias, dtype, group.kind))
    return weights, biases


def _half(tensor: StoredTensor | Matrix, half: str) -> str:
    return half if tensor.dtype in _ROUNDED else tensor.dtype


def _shared_half(tensors: Sequence[StoredTensor | Matrix], half: str) -> str:
    """What those become that have to be rounded: the one 16-bit type of the others, with which they are one matrix."""
    others = {tensor.dtype for tensor in tensors} - _ROUNDED
    return others.pop() if len(others) == 1 else half


def _check_same_dtype(run: Sequence[tuple[StoredTensor | Matrix, str]]) -> None:
    """A run of a group is one matrix, so it has one dtype."""
    for tensor, dtype in run:
        if dtype != run[0][1]:
            raise UnsupportedDtypeError(
                f"would be kept in another dtype than '{run[0][0].name}', which shares its input",
                file=tensor.file, tensor=tensor.name, expected=run[0][1], found=dtype,
            )  # fmt: skip


def _spec(task: KeepTask) -> TensorSpec:
    return TensorSpec(task.name, task.dtype, task.source.shape)


def _group_unit(group: list[QuantizeTask], biases: list[KeepTask]) -> Unit:
    """Kind by kind, so that each kind of a group is one matrix."""
    runs: dict[str, list[TensorSpec]] = {kind: [] for kind in KINDS}
    for task in group:
        out, k = task.source.shape[0], len(task.columns)
        runs[WEIGHT].append(TensorSpec(f"{task.path}.{WEIGHT}", "I8", (*task.source.shape, 1)))
        runs[SCALE].append(TensorSpec(f"{task.path}.{SCALE}", "F32", (out,)))
        if k:
            runs[OUTLIER_INDEX].append(TensorSpec(f"{task.path}.{OUTLIER_INDEX}", "I32", (k,)))
            runs[OUTLIER_WEIGHT].append(
                TensorSpec(f"{task.path}.{OUTLIER_WEIGHT}", task.half, (out, k))
            )
    runs[BIAS] = [_spec(task) for task in biases]
    unit: list[Run] = [tuple(run) for run in runs.values() if run]
    return tuple(unit)
