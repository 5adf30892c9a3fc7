"""The conversion plan: what becomes of each tensor, and in which order, from headers alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, UnsupportedDtypeError, UnsupportedFeatureError
from ..formats.checkpoint import CONFIG_FILE, Checkpoint, StoredTensor
from ..formats.dtypes import FLOAT_DTYPES
from ..formats.layout import Run, TensorSpec, Unit
from ..formats.manifest import InputGroup
from ..formats.names import BIAS, KINDS, OUTLIER_INDEX, OUTLIER_WEIGHT, SCALE, WEIGHT
from ..runtime.architecture import Architecture, Module, find_tensor
from .options import ConvertOptions
from .outliers import NO_OUTLIERS, OutlierChoice


@dataclass(frozen=True)
class QuantizeTask:
    """A linear's weight to quantise; ``half`` is the dtype of its outlier columns."""

    path: str
    source: StoredTensor
    columns: npt.NDArray[np.int32]
    half: str


@dataclass(frozen=True)
class KeepTask:
    """A tensor that stays in 16 bits, rounded to ``dtype`` if the source has 32."""

    source: StoredTensor
    dtype: str


Task = QuantizeTask | KeepTask


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
    checkpoint: Checkpoint,
    architecture: Architecture,
    outliers: Mapping[str, OutlierChoice],
    options: ConvertOptions,
) -> Plan:
    """Plan the conversion of a checkpoint.

    Args:
        checkpoint: the source.
        architecture: its decoder.
        outliers: the choice for each input, by the path of the group's first linear; none where absent.
        options: which linears to keep, and the 16-bit type for tensors that the source has in F32.

    Raises:
        ArgumentError: a pattern of linears to keep matches none.
        MissingTensorError, ShapeError: the source is not what its config implies.
        UnsupportedDtypeError: a weight is no float, or linears that share an input differ.
    """
    tasks: list[Task] = []
    units: list[Unit] = []
    inputs: list[InputGroup] = []
    half = options.half
    by_path = {m.path: m for m in architecture.modules}
    kept_paths = _matching(options.keep, [m.path for m in architecture.modules if m.group])
    for module in architecture.modules:
        if not module.group or module.path in kept_paths:
            kept = [_keep(checkpoint, module, kind, half) for kind in _kinds(module)]
            tasks += kept
            units += [((_spec(task),),) for task in kept]
        paths = tuple(path for path in module.group if path not in kept_paths)
        if module.path in paths[:1]:
            choice = outliers.get(module.group[0], NO_OUTLIERS)
            members = [by_path[path] for path in paths]
            group = [_quantize(checkpoint, m, choice, half) for m in members]
            biases = [_keep(checkpoint, m, BIAS, half) for m in members if m.bias]
            _check_same_dtype([(task.source, task.half) for task in group])
            _check_same_dtype([(task.source, task.dtype) for task in biases])
            tasks += [*group, *biases]
            units.append(_group_unit(group, biases))
            inputs.append(InputGroup(paths, module.shape[1], len(choice.columns), choice.threshold))
    extras, skipped = _extras(checkpoint, architecture, half)
    tasks += extras
    units += [((_spec(task),),) for task in extras]
    return Plan(tuple(tasks), tuple(units), tuple(inputs), skipped)


def _matching(patterns: Sequence[str], paths: Sequence[str]) -> set[str]:
    matched = set()
    for pattern in patterns:
        found = {path for path in paths if re.search(pattern, path)}
        if not found:
            raise ArgumentError("keep matches no linear of attention or FFN", expected=f"such as {paths[0]}",
                                found=repr(pattern))  # fmt: skip
        matched |= found
    return matched


def _kinds(module: Module) -> Iterator[str]:
    yield WEIGHT
    if module.bias:
        yield BIAS


def _source(checkpoint: Checkpoint, module: Module, kind: str) -> StoredTensor:
    tensor = find_tensor(checkpoint, module, kind)
    if tensor.dtype not in FLOAT_DTYPES:
        raise UnsupportedDtypeError(
            "unsupported dtype of a weight", file=tensor.file, tensor=tensor.name,
            expected=" or ".join(FLOAT_DTYPES), found=tensor.dtype,
        )  # fmt: skip
    return tensor


def _half(tensor: StoredTensor, half: str) -> str:
    return half if tensor.dtype == "F32" else tensor.dtype


def _keep(checkpoint: Checkpoint, module: Module, kind: str, half: str) -> KeepTask:
    source = _source(checkpoint, module, kind)
    return KeepTask(source, _half(source, half))


def _quantize(
    checkpoint: Checkpoint, module: Module, choice: OutlierChoice, half: str
) -> QuantizeTask:
    source = _source(checkpoint, module, WEIGHT)
    return QuantizeTask(module.path, source, choice.columns, _half(source, half))


def _check_same_dtype(run: list[tuple[StoredTensor, str]]) -> None:
    """A run of a group is one matrix, so it has one dtype."""
    for tensor, dtype in run:
        if dtype != run[0][1]:
            raise UnsupportedDtypeError(
                f"would be kept in another dtype than '{run[0][0].name}', which shares its input",
                file=tensor.file, tensor=tensor.name, expected=run[0][1], found=dtype,
            )  # fmt: skip


def _spec(task: KeepTask) -> TensorSpec:
    return TensorSpec(task.source.name, task.dtype, task.source.shape)


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


def _extras(
    checkpoint: Checkpoint, architecture: Architecture, half: str
) -> tuple[list[KeepTask], dict[str, str]]:
    """Tensors that no module of the decoder has: kept as they are, but for those that are redundant."""
    modules = {m.path: m for m in architecture.modules}
    planned = {f"{m.path}.{kind}" for m in architecture.modules for kind in _kinds(m)}
    head = architecture.family.names["head"] + ".weight"
    extras, skipped = [], {}
    for name, tensor in checkpoint.tensors.items():
        if name in planned:
            continue
        if name.rpartition(".")[0] in modules:
            raise UnsupportedFeatureError(
                f"{CONFIG_FILE} says nothing of this tensor, which belongs to a module that the model uses",
                file=tensor.file, tensor=name,
            )  # fmt: skip
        if name == head and architecture.config.tied:
            skipped[name] = "tied to the token embedding"
        elif name.endswith(architecture.family.skipped):
            skipped[name] = "computed, not learned"
        elif tensor.dtype not in FLOAT_DTYPES:
            skipped[name] = f"not a weight of the model, and {tensor.dtype}"
        else:
            extras.append(KeepTask(tensor, _half(tensor, half)))
    return extras, skipped
