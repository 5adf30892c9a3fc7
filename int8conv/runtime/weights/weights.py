"""The decoder's weights: a converted folder, mapped, or a source checkpoint, cast.

Both provide a ``Projection`` for linears that share an input: one call takes the input and returns all outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import OutlierIndexError
from ...formats.int8.folder import ConvertedFolder, QuantizedLinear
from ...formats.safetensors.dtypes import SCALED_DTYPES
from ...formats.safetensors.storage import LocalFile
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.checkpoint import Checkpoint
from ...formats.source.matrix import find_matrix
from ...kernels.cpu import jit
from ...kernels.dispatch import Mode
from ...kernels.weight import FallbackCounter, MixedWeight, dequantized_rows
from ..backends.interface import Backend
from ..backends.numba_backend import NumbaBackend
from ..backends.parts import Projection
from ..backends.torch_backend import TorchBackend
from ..models.architecture import Module, find_tensor, shape_error
from .mapping import MappedFiles, read_matrix, read_tensor, torch_dtype
from .projections import DenseProjection, MixedProjection, SplitProjection

Lookup = Callable[[Tensor], Tensor]
"""Row numbers of any shape ``[...]`` -> ``[..., columns]`` in the activations' dtype."""


class Weights(Protocol):
    """What the decoder needs to be built."""

    backend: Backend
    dtype: torch.dtype
    """Dtype of activations."""

    def tensor(
        self, module: Module, kind: str = "weight", dtype: torch.dtype | None = None
    ) -> Tensor:
        """A small tensor in the activations' dtype, or in ``dtype``."""

    def lookup(self, module: Module) -> Lookup:
        """The lookup function of an embedding, which may stay in the dtype of the file."""

    def projection(self, modules: Sequence[Module]) -> Projection:
        """The linears of one input."""


class TensorFiles(Protocol):
    """Weights files in the memory of some device."""

    def tensor(self, stored: StoredTensor) -> Tensor:
        """A stored tensor, in its dtype and shape."""

    def fused(self, parts: list[StoredTensor]) -> Tensor:
        """One view of adjacent tensors, concatenated along their first axis."""


class CheckpointWeights:
    """A source checkpoint. Tensors in another dtype than ``dtype`` or on the hub are read and cast on request; others are mapped.

    They are copied to ``device`` one by one, and not kept there beyond their use by the caller.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = torch.device(device)
        self._files = MappedFiles()
        self.backend: Backend = TorchBackend(device)
        self._embeddings: dict[str, Tensor] = {}

    def tensor(
        self, module: Module, kind: str = "weight", dtype: torch.dtype | None = None
    ) -> Tensor:
        stored = find_tensor(self.checkpoint, module, kind)
        found = self._read(stored) if dtype is None else read_tensor(stored).to(dtype)
        return found.to(self.device)

    def check_files(self) -> None:
        """Like ``ConvertedWeights.check_files``."""
        self._files.check()

    def _read(self, stored: StoredTensor) -> Tensor:
        if stored.dtype in SCALED_DTYPES or stored.name in self.checkpoint.transposed:
            return read_matrix(find_matrix(self.checkpoint, stored)).to(self.dtype)
        if torch_dtype(stored) == self.dtype and isinstance(stored.file, LocalFile):
            return self._files.tensor(stored)
        return read_tensor(stored).to(self.dtype)

    def lookup(self, module: Module) -> Lookup:
        weight = self._weight(module)
        return lambda rows: F.embedding(rows, weight)

    def _weight(self, module: Module) -> Tensor:
        """A single copy of an embedding, which may also be the head."""
        if module.kind != "embedding":
            weight = self.tensor(module)
            return weight.t() if module.transposed else weight
        if module.path not in self._embeddings:
            self._embeddings[module.path] = self.tensor(module)
        return self._embeddings[module.path]

    def projection(self, modules: Sequence[Module]) -> Projection:
        pairs = [
            (self._weight(m), self.tensor(m, "bias") if m.bias else None) for m in modules
        ]  # fmt: skip
        return DenseProjection(pairs)


class ConvertedWeights:
    """A converted folder: large tensors are views of the mapped files, and a group's codes form one matrix."""

    def __init__(
        self,
        converted: ConvertedFolder,
        dtype: torch.dtype,
        mode: Mode | None = None,
        *,
        outlier_fallback: bool = True,
        backend: Backend | None = None,
    ) -> None:
        """``backend``: the CPU backend; None: compiled layers for float32 activations if numba is installed."""
        self.converted = converted
        self.dtype = dtype
        self.mode: Mode | None = mode
        self._files: TensorFiles = MappedFiles()
        compiled = dtype == torch.float32 and jit.available()
        self.backend: Backend = backend or (NumbaBackend() if compiled else TorchBackend())
        inputs = converted.manifest.inputs
        self._groups = {path: group.linears for group in inputs for path in group.linears}
        self._thresholds = {
            path: group.threshold if outlier_fallback else None
            for group in inputs
            for path in group.linears
        }
        self.counters: dict[str, FallbackCounter] = {}
        """Counters of the outlier fallback at each input, keyed by the path of its first linear."""

    def tensor(
        self, module: Module, kind: str = "weight", dtype: torch.dtype | None = None
    ) -> Tensor:
        stored = find_tensor(self.converted.checkpoint, module, kind)
        return self._files.tensor(stored).to(dtype or self.dtype)

    def lookup(self, module: Module) -> Lookup:
        linear = self.converted.linears.get(module.path)
        if linear is None:
            weight = self._stored(module)
            return lambda rows: F.embedding(rows, weight).to(self.dtype)
        mixed = self._mixed([module], [linear])
        return lambda rows: dequantized_rows(mixed, rows).to(self.dtype)

    def _stored(self, module: Module) -> Tensor:
        weight = self._files.tensor(find_tensor(self.converted.checkpoint, module))
        return weight.t() if module.transposed else weight

    def projection(self, modules: Sequence[Module]) -> Projection:
        parts = [(members, self._multiply(members)) for members in self._fusable(modules)]
        if len(parts) == 1:
            return parts[0][1]
        order = [m.path for members, _ in parts for m in members]
        numbers = [order.index(m.path) for m in modules]
        return self._split([multiply for _, multiply in parts], numbers)

    def _split(self, parts: Sequence[Projection], order: Sequence[int]) -> Projection:
        return SplitProjection(parts, order)

    def _fusable(self, modules: Sequence[Module]) -> list[list[Module]]:
        """Split modules into those stored next to each other: groups of the manifest, or single modules."""
        by_path = {m.path: m for m in modules}
        parts = []
        for module in modules:
            group = self._groups.get(module.path, (module.path,))
            if not set(group) <= set(by_path):
                parts.append([module])
            elif module.path == group[0]:
                parts.append([by_path[path] for path in group])
        return parts

    def _multiply(self, modules: Sequence[Module]) -> Projection:
        found = [self.converted.linears.get(m.path) for m in modules]
        linears = [linear for linear in found if linear is not None]
        bias = self._bias(modules)
        if not linears:  # kept in 16 bits by the converter
            weight = self._stored(modules[0])
            return self._dense(weight, bias)
        mixed, sizes = self._mixed(modules, linears), [m.shape[0] for m in modules]
        return self._quantized(mixed, bias, sizes)

    def _dense(self, weight: Tensor, bias: Tensor | None) -> Projection:
        return DenseProjection([(weight, bias)])

    def _quantized(self, mixed: MixedWeight, bias: Tensor | None, sizes: Sequence[int]) -> Projection:  # fmt: skip
        return MixedProjection(mixed, bias, sizes, self.mode)

    def _mixed(self, modules: Sequence[Module], linears: Sequence[QuantizedLinear]) -> MixedWeight:
        for linear, module in zip(linears, modules, strict=True):
            shape = (linear.out_features, linear.in_features)
            if shape != module.shape:
                raise shape_error(linear.weight, module.shape, shape)
        first = linears[0]
        index = first.outlier_index
        slices = [t for t in (linear.outlier_weight for linear in linears) if t is not None]
        stored, counter = self._thresholds[first.path], None
        threshold = stored or None  # a stored 0 means that the whole input stays in 16 bits
        if threshold is not None:
            counter = self.counters.setdefault(
                first.path, FallbackCounter(first.in_features, self.backend.device)
            )
        return MixedWeight(
            codes=self._files.fused([linear.weight for linear in linears]).squeeze(-1),
            scale=self._files.fused([linear.scale for linear in linears]),
            outlier_index=self._checked(index, first.in_features) if index is not None else None,
            outlier_weight=self._files.fused(slices) if slices else None,
            threshold=threshold,
            counter=counter,
            activation_bits=16 if stored == 0 else 8,
        )

    def _checked(self, index: StoredTensor, in_features: int) -> Tensor:
        """A checked copy of outlier columns: kernels use them as addresses, so they must not change afterwards."""
        columns = self._files.tensor(index).clone()
        if bool(((columns < 0) | (columns >= in_features)).any()):
            raise OutlierIndexError("outlier column out of range", file=index.file, tensor=index.name,
                                    expected=f"0..{in_features - 1}")  # fmt: skip
        return columns

    def check_files(self) -> None:
        """Raise FileChangedError if a mapped file has been changed in place since its header was read."""
        if isinstance(self._files, MappedFiles):
            self._files.check()

    def _bias(self, modules: Sequence[Module]) -> Tensor | None:
        if not modules[0].bias:
            return None
        stored = [find_tensor(self.converted.checkpoint, m, "bias") for m in modules]
        return self._files.fused(stored)
