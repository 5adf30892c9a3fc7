"""What a step or a prompt of a model launches: the real decoder on meta tensors, its Triton launches and PyTorch's operators recorded.

A step that runs on meta tensors has read nothing from the device: there is nothing to read. ``Strict`` forbids what else a CUDA
graph could not capture, or would freeze: tensors of the host, copies to or from it, and shapes that depend on values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from int8conv.kernels.gpu import launch
from int8conv.runtime.decoder.cache import Cache
from int8conv.runtime.decoder.decoder import Decoder
from tests.kernels.gpu.compiling import Recorded

from .random_model import random_decoder

META = torch.device("meta")
_READS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "unique_dim", "equal", "is_nonzero"}  # fmt: skip
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"}


class NotCapturableError(AssertionError):
    """A step does what a CUDA graph cannot hold."""


@dataclass(frozen=True)
class Operator:
    """A kernel of PyTorch's."""

    name: str
    read: float
    written: float
    scalars: tuple[Any, ...]
    """Arguments that are no tensors: what a graph freezes."""
    shapes: tuple[tuple[int, ...], ...]
    query: tuple[int, ...] | None = None
    """Attention only: the shape of the queries."""


Call = Recorded | Operator


@dataclass
class Calls:
    """In the order of their launches."""

    found: list[Call] = field(default_factory=list)
    made: list[tuple[str, StorageWeakRef]] = field(default_factory=list)
    """The memory that was allocated, and by which operator."""

    @property
    def launches(self) -> list[Recorded]:
        return [call for call in self.found if isinstance(call, Recorded)]

    @property
    def operators(self) -> list[Operator]:
        return [call for call in self.found if isinstance(call, Operator)]

    def outliving(self, *results: Tensor) -> list[str]:
        """Which operators' memory is still in use, but for that of results: in a capture it would belong to the graph, and hold nothing
        until a replay."""
        kept = {StorageWeakRef(x.untyped_storage()) for x in results}
        return [name for name, memory in self.made if not memory.expired() and memory not in kept]

    def frozen(self) -> list[Any]:
        """Everything that a CUDA graph would keep as it is: grids, numbers, constants; tensors by shape."""
        return [
            [call.kernel.__name__, call.grid, [_plain(x) for x in call.args], sorted(call.meta.items())]
            if isinstance(call, Recorded) else [call.name, call.scalars, call.shapes]
            for call in self.found
        ]  # fmt: skip


def _plain(x: object) -> object:
    return ("tensor", tuple(x.shape), x.stride()) if isinstance(x, Tensor) else x


class Strict(TorchDispatchMode):
    """Records operators that launch a kernel; fails at what a graph cannot capture."""

    def __init__(self, calls: Calls, device: torch.device | None) -> None:
        """``device``: where all tensors have to be; None: nothing is forbidden."""
        super().__init__()
        self._calls = calls
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _READS and self._device is not None:
            raise NotCapturableError(f"{name} reads a value on the host")
        given = tree_flatten((args, kwargs or {}))[0]
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_flatten(result)[0] if isinstance(x, Tensor)]
        for x in [*(x for x in given if isinstance(x, Tensor)), *made]:
            if self._device is None:
                break
            if x.device != self._device:
                raise NotCapturableError(f"{name} has a tensor on {x.device}")
            if name == "index" and x.dtype == torch.bool:
                raise NotCapturableError("a mask as an index: its shape depends on values")
        tensors = [x for x in given if isinstance(x, Tensor)]
        memory = {x.untyped_storage()._cdata for x in tensors}
        self._calls.made += [
            (name, StorageWeakRef(x.untyped_storage()))
            for x in made if x.untyped_storage()._cdata not in memory
        ]  # fmt: skip
        is_view = made and made[0].untyped_storage()._cdata in memory and not name.endswith("_")
        if made and not is_view and name not in _NO_KERNEL:
            scalars = tuple(x for x in given if isinstance(x, (int, float, bool, torch.dtype)))
            self._calls.found.append(Operator(
                name, sum(x.numel() * x.element_size() for x in tensors), sum(x.numel() * x.element_size() for x in made),
                scalars, tuple(tuple(x.shape) for x in tensors),
            ))  # fmt: skip
        return result


class _Attention(TorchFunctionMode):
    """PyTorch's attention is one kernel, not what it consists of on meta tensors."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args[:3]
        tensors = [q, k, v] + [x for x in (kwargs or {}).values() if isinstance(x, Tensor)]
        scalars = tuple(x for x in (kwargs or {}).values() if not isinstance(x, Tensor))
        read = sum(x.numel() * x.element_size() for x in tensors)
        result = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        self._calls.found.append(Operator(
            "attention", read, result.numel() * result.element_size(), scalars, tuple(tuple(x.shape) for x in tensors), tuple(q.shape),
        ))  # fmt: skip
        return result


@contextmanager
def recorded(
    capability: int, device: torch.device | None = META, *, arguments: bool = True
) -> Iterator[Calls]:
    """Records everything that is launched within, for a GPU of this capability; tensors have to be on ``device``, unless it is None.

    Without ``arguments``, kernels are not recorded, and what they are given lives no longer than it otherwise does.

    Raises:
        NotCapturableError: within the block, at an operator that a CUDA graph could not capture.
    """
    calls = Calls()

    def record(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
        if arguments and all(grid):
            calls.found.append(Recorded(kernel, args, meta, grid))

    real = launch.launch, launch.capability
    launch.launch, launch.capability = record, lambda device: capability  # type: ignore[assignment]
    try:
        with _Attention(calls), Strict(calls, device):
            yield calls
    finally:
        launch.launch, launch.capability = real  # type: ignore[assignment]


@torch.inference_mode()
def step_of(decoder: Decoder, cache: Cache, capability: int, context: int) -> Calls:
    """A decode step of a decoder on meta tensors, one token for each of the cache's sequences, after ``context - 1`` positions.

    Raises:
        NotCapturableError: a CUDA graph could not capture it, or would own memory that something else keeps.
    """
    ids = torch.empty(len(cache.lengths), 1, dtype=torch.int64, device=META)
    cache.truncate(0)
    cache.advance(context - 1)
    with recorded(capability, None):  # makes what is made once, as the step before a capture does
        decoder.forward(ids, cache, last_only=True)
    cache.advance(-1)
    with recorded(capability, arguments=False) as allocated:
        logits = decoder.forward(ids, cache, last_only=True)
    if left := allocated.outliving(logits):
        raise NotCapturableError(f"memory of {', '.join(left)} outlives the step")
    cache.advance(-1)
    with recorded(capability) as calls:
        decoder.forward(ids, cache, last_only=True)
    return calls


@torch.inference_mode()
def prompt_of(decoder: Decoder, capability: int, *, tokens: int) -> Calls:
    """A prompt in one part; in a mixture of experts, through all of them."""
    cache = decoder.backend.cache(
        decoder.config, batch=1, capacity=tokens + 64, dtype=decoder.dtype
    )
    ids = torch.empty(1, tokens, dtype=torch.int64, device=META)
    with recorded(capability, None):
        decoder.forward(ids, cache, last_only=True)
    cache.truncate(0)
    with recorded(capability, None) as calls:
        decoder.forward(ids, cache, last_only=True)
    return calls


def cache_of(decoder: Decoder, batch: int, context: int, kv: torch.dtype | None = None) -> Cache:
    """With room for a few tokens more."""
    kv = kv or decoder.dtype
    return decoder.backend.cache(decoder.config, batch=batch, capacity=context + 64, dtype=kv)


def model_of(
    name: str, dtype: torch.dtype, share: float | None, layers: int | None = 1, *, int8_head: bool = False
) -> Decoder:  # fmt: skip
    """Of a known shape, on meta tensors; its layers are all alike, so that one stands for all."""
    return random_decoder(name, dtype, META, share, layers=layers, int8_head=int8_head)[0]
