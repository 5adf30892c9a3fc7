"""The conversion plan: what happens to each tensor, and in which order, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedModelError
from ..formats.int8.layout import Run, TensorSpec, Unit
from ..formats.int8.manifest import InputGroup
from ..formats.int8.names import BIAS, KINDS, OUTLIER_INDEX, OUTLIER_WEIGHT, SCALE, WEIGHT
from ..formats.safetensors.stored import StoredTensor
from ..formats.source.matrix import Matrix
from .options import ConvertOptions
from .outliers.rule import NO_OUTLIERS, OutlierChoice
from .outliers.selection import Kept, Linear, Selection


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
    """A tensor that is copied unchanged, or rounded to ``dtype`` if it is a float32 matrix."""

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
    """Tasks in output order."""

    tasks: tuple[Task, ...]
    units: tuple[Unit, ...]
    """Tensors that are stored together, for the layout."""
    inputs: tuple[InputGroup, ...]
    skipped: dict[str, str]
    """Source tensors left out, and why."""

    @property
    def source_bytes(self) -> int:
        return sum(task.source.nbytes for task in self.tasks)


def make_plan(
    selection: Selection, outliers: Mapping[str, OutlierChoice], options: ConvertOptions
) -> Plan:
    """Plan the conversion of a source.

    A group is one matrix, so linears of one input whose outlier columns or biases would differ in dtype form separate groups.

    Args:
        selection: what becomes int8 and what stays.
        outliers: the choice for each input, keyed by the group's ``input``; no columns if absent.
        options: among others, the 16-bit type for F32 and FP8 tensors of the source.

    Raises:
        UnsupportedModelError: two tensors would have the same name.
    """
    tasks: list[Task] = []
    units: list[Unit] = []
    inputs: list[InputGroup] = []
    for item in selection.items:
        if isinstance(item, Kept):
            kept = KeepTask(
                item.name, item.source, kept_dtype(item.name, item.source, options.half), item.kind
            )
            tasks.append(kept)
            units.append(((_spec(kept),),))
            continue
        choice = outliers.get(item.input, NO_OUTLIERS)
        if item.exact_input:
            choice = OutlierChoice(choice.columns, 0.0)
        for linears, half in _by_dtype(item.linears, options.half):
            group, biases = _group_tasks(linears, choice, half, item.kind)
            tasks += [*group, *biases]
            units.append(_group_unit(group, biases))
            paths = tuple(linear.path for linear in linears)
            in_features = linears[0].weight.shape[1]
            inputs.append(InputGroup(paths, in_features, len(choice.columns), choice.threshold))
    _check_names(units, tasks)
    return Plan(tuple(tasks), tuple(units), tuple(inputs), selection.skipped)


def _by_dtype(linears: Sequence[Linear], half: str) -> Iterator[tuple[list[Linear], str]]:
    """Linears of one input, grouped by the dtypes of their outlier columns and biases; float32 weights join 16-bit siblings."""
    halves = {x.weight.dtype for x in linears} - _ROUNDED
    rounded = halves.pop() if len(halves) == 1 else half
    found: dict[tuple[str, str | None], list[Linear]] = {}
    for x in linears:
        dtype = rounded if x.weight.dtype in _ROUNDED else x.weight.dtype
        found.setdefault((dtype, None if x.bias is None else _small_dtype(x.bias)), []).append(x)
    for (dtype, _), members in found.items():
        yield members, dtype


def _group_tasks(
    linears: Sequence[Linear], choice: OutlierChoice, half: str, kind: str
) -> tuple[list[QuantizeTask], list[KeepTask]]:
    weights, biases = [], []
    for x in linears:
        weights.append(QuantizeTask(x.path, x.weight, choice.columns, half, kind))
        if x.bias is not None:
            biases.append(KeepTask(f"{x.path}.{BIAS}", x.bias, _small_dtype(x.bias), kind))
    return weights, biases


def kept_dtype(name: str, source: StoredTensor | Matrix, half: str) -> str:
    """What a tensor that is no linear becomes. Only float32 matrices are rounded: what is small, or no operand of a product, is
    worth its bits."""
    if source.dtype not in _ROUNDED:
        return source.dtype
    long_axes = sum(size > 1 for size in source.shape)
    is_matrix = long_axes >= 2 and name.endswith(f".{WEIGHT}")
    return half if is_matrix or long_axes >= 3 else "F32"


def _small_dtype(tensor: StoredTensor) -> str:
    """Dtype of anything that is not a matrix; float64 is read as float32."""
    return "F32" if tensor.dtype in _ROUNDED else tensor.dtype


def _check_names(units: Sequence[Unit], tasks: Sequence[Task]) -> None:
    """A stack ``P`` becomes ``P.0`` and so on, names that may already exist."""
    names = Counter(spec.name for unit in units for run in unit for spec in run)
    for name, count in names.items():
        if count > 1:
            source = next(t.source for t in tasks if name.startswith(_output_name(t)))
            raise UnsupportedModelError(
                "two output tensors would have this name", file=source.file, tensor=name,
                hint="leave one of them out with --exclude",
            )  # fmt: skip


def _output_name(task: Task) -> str:
    return task.path if isinstance(task, QuantizeTask) else task.name


def _spec(task: KeepTask) -> TensorSpec:
    return TensorSpec(task.name, task.dtype, task.source.shape)


def _group_unit(group: list[QuantizeTask], biases: list[KeepTask]) -> Unit:
    """One run per kind, so that each kind of a group is one matrix."""
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
