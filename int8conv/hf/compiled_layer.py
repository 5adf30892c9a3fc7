"""Decoder layers of a transformers model as one compiled call each, for single new tokens on a CPU.

A layer keeps its modules and its own ``forward``, which answers everything but a step of few sequences by one token each: prompts,
padded batches, other caches, training, hooks on its parts, adapters. It also computes the first step, and the compiled layer answers
that and the following ones only if output, key and value are the same but for rounding: then all steps are the runtime's bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.modeling_utils import PreTrainedModel

from ..errors import Int8convError
from ..kernels.cpu import fused, jit
from ..kernels.dispatch import compiled_tokens
from ..runtime.models.architecture import Architecture, read_architecture
from .grown_cache import GrownCache, cache_layer
from .layer_parts import Built, LayerParts

_TOLERANCE: Final = 1e-4
"""Of the largest magnitude: sums are rounded in another order."""
_STEP: Final = "int8conv_step"

Options = Mapping[str, Any]
"""The keyword arguments of a layer, as transformers passes them."""


class StepTables:
    """cos and sin of a step as compiled layers take them; most layers of a model get the same ones."""

    def __init__(self) -> None:
        self._of: object = None
        self._arrays: fused.Tables | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_of": None, "_arrays": None}

    def find(self, embeddings: object, batch: int) -> fused.Tables | None:
        """The tables of ``position_embeddings``, cos and sin float32 ``[batch or 1, 1, rotated]``; None if it is something else."""
        if embeddings is not self._of or self._arrays is None or len(self._arrays[0]) != batch:
            self._of, self._arrays = embeddings, _tables(embeddings, batch)
        return self._arrays


def _tables(embeddings: object, batch: int) -> fused.Tables | None:
    if not isinstance(embeddings, tuple) or len(embeddings) != 2:
        return None
    for table in embeddings:
        if not isinstance(table, Tensor) or table.ndim != 3 or table.shape[1] != 1:
            return None
        if table.dtype != torch.float32 or len(table) not in (1, batch):
            return None
    cos, sin = embeddings
    return fused.as_tables((cos[:, 0], sin[:, 0]), batch)


class LayerStep:
    """The compiled form of one layer, built when it is first needed."""

    def __init__(self, parts: LayerParts, tables: StepTables) -> None:
        """``tables``: shared by the layers of a model."""
        self.parts = parts
        self.tables = tables if parts.spec.rotary is not None else None
        self.built: Built | None = None
        self.is_same: bool | None = None
        """Whether it computes what the layer computes; None: not yet compared."""

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model builds its own."""
        return vars(self) | {"built": None, "is_same": None}

    # a cache layer of transformers
    def usable(self, module: nn.Module, x: Tensor, options: Options) -> Any:
        """The cache layer to append to; None if the layer's own ``forward`` must answer."""
        if self.is_same is False or options.get("attention_mask") is not None:
            return None
        if type(x) is not Tensor or x.dtype != torch.float32 or x.device.type != "cpu":
            return None
        batch, *tokens = x.shape[:-1]
        if tokens != [1] or batch > compiled_tokens() or options.get("output_attentions"):
            return None
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or _has_any_global_hook():  # type: ignore[no-untyped-call]
            return None
        cache = options.get("cache", options.get("past_key_values"))  # the name up to 5.23
        layer = cache_layer(cache, self.parts.layer)
        if layer is None or layer.keys.shape[0] != batch:
            return None
        if self._find_tables(options, batch) is None:
            return None
        if self.built is None or not self.built.is_current():
            self.built = self.parts.build(module)
        return None if self.built is None or self.built.is_observed() else layer

    def run(self, x: Tensor, options: Options, room: GrownCache) -> Tensor:
        """``[batch, 1, hidden]`` -> the same; writes a key and a value behind those in ``room``."""
        batch, _, hidden = x.shape
        tables = self._find_tables(options, batch)
        assert self.built is not None
        assert tables is not None
        rows = x.reshape(batch, hidden)
        return self.built.compiled.step(rows, tables, *room.memory).unsqueeze(1)

    # what the layer's own ``forward`` gave, and the cache layer that it appended to
    def compare(self, x: Tensor, options: Options, room: GrownCache, expected: Any, layer: Any) -> Any:  # fmt: skip
        """Run the compiled form on what the layer has answered, with the cache before that, and decide whether it is the same.

        Returns the output, and leaves in ``layer`` the key and value, of the form that answers from now on.
        """
        self.is_same = False
        if not isinstance(expected, Tensor) or layer.keys.shape[2] != room.filled + 1:
            return expected
        y = self.run(x, options, room)
        at = room.filled
        pairs = [(y, expected)]
        for own, its in ((room.keys, layer.keys), (room.values, layer.values)):
            pairs.append((own[:, :, at], its[:, :, at]))
        self.is_same = all(_close(own, its) for own, its in pairs)
        if not self.is_same:
            return expected
        room.replace_last_of(layer)
        return y

    def _find_tables(self, options: Options, batch: int) -> fused.Tables | None:
        if self.tables is None:
            return fused.as_tables(None, batch)
        return self.tables.find(options.get("position_embeddings"), batch)


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


class CompiledStep(nn.Module):
    """Comes before a layer's own class; ``compiled_class`` makes the two one."""

    original: ClassVar[type[nn.Module]]
    int8conv_step: LayerStep

    # options and results of transformers' layers
    def forward(self, hidden_states: Tensor, *args: object, **options: Any) -> Any:
        """The layer's output, by its own ``forward`` or in one call."""
        plain: Callable[..., Any] = super().forward
        if args or torch.compiler.is_compiling():
            return plain(hidden_states, *args, **options)
        step = self.int8conv_step
        layer = step.usable(self, hidden_states, options)
        if layer is None:
            return plain(hidden_states, **options)
        room = GrownCache.of(layer)
        if step.is_same:
            y = step.run(hidden_states, options, room)
            room.append_to(layer)
            return y
        expected = plain(hidden_states, **options)
        return step.compare(hidden_states, options, room, expected, layer)

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        """The class is made at run time: a copy or pickle names the one that it is made from."""
        return _empty, (self.original,), self.__dict__


_MADE: dict[type[nn.Module], type[CompiledStep]] = {}


def compiled_class(original: type[nn.Module]) -> type[CompiledStep]:
    """A subclass of a layer's class under its name, which accelerate and others look for; one for each class."""
    if original in _MADE:
        return _MADE[original]
    members = {"__module__": original.__module__, "__qualname__": original.__qualname__,
               "__doc__": original.__doc__, "original": original}  # fmt: skip
    _MADE[original] = type(original.__name__, (CompiledStep, original), members)
    return _MADE[original]


def _empty(original: type[nn.Module]) -> CompiledStep:
    made = compiled_class(original)
    return made.__new__(made)


def compile_steps(model: PreTrainedModel) -> None:
    """Let the decoder layers answer for single new tokens in one call each, if numba is installed and the runtime knows the family."""
    if not jit.available():
        return
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    try:
        architecture = read_architecture(model.config.to_diff_dict(), names)
    except Int8convError:
        return
    tables = StepTables()
    for layer in range(architecture.config.num_layers):
        _compile_step(model, architecture, layer, tables)


def _compile_step(
    model: PreTrainedModel, architecture: Architecture, layer: int, tables: StepTables
) -> None:
    config = architecture.config
    paths = {role: m.path.split(".") for role, m in architecture.layer(layer).items()}
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths.values(), strict=False))
    prefix = [parts[0] for parts in same]
    relative = {role: ".".join(path[len(prefix) :]) for role, path in paths.items()}
    parts = LayerParts(config, layer, relative)
    if config.is_sparse(layer) or config.is_recurrent(layer) or parts.spec.growth or config.gated_attention:  # fmt: skip
        return
    if config.value_norm or config.activation == "xielu":  # no compiled layer has what these have
        return
    try:
        module = model.get_submodule(".".join(prefix))
    except AttributeError:
        return
    if module is not model and not isinstance(module, CompiledStep):
        module.__class__ = compiled_class(type(module))
        setattr(module, _STEP, LayerStep(parts, tables))


def release_steps(model: PreTrainedModel) -> None:
    """Undo ``compile_steps``."""
    for module in model.modules():
        if isinstance(module, CompiledStep):
            delattr(module, _STEP)
            module.__class__ = module.original  # type: ignore[assignment]
