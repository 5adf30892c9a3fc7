"""The static cache: keys and values, allocated once for the longest sequence and filled in place, and states of recurrent layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..models.config import DecoderConfig, Heads
from ..models.recurrence import Recurrence
from .recurrent.states import State, empty_states

_Self = TypeVar("_Self", bound="Cache")


class Cache:
    """Memory for the keys and values of every layer, for sequences that may differ in length.

    Prompts of different length are processed one by one, each with its ``sequence``; then all continue together, one token at a time.
    """

    def __init__(
        self, parts: list[Tensor], lengths: torch.dtype = torch.int64, states: Sequence[State] = ()
    ) -> None:
        """``parts``: keys and values, each ``[layers, 2, batch, kv_heads, capacity, width]``; ``states``: those of recurrent layers. All
        on one device."""
        self._parts = parts
        self.states = list(states)
        self.lengths = torch.zeros(parts[0].shape[2], dtype=lengths, device=parts[0].device)
        """``[batch]``: number of positions filled, the same in every layer between forward passes."""

    @property
    def capacity(self) -> int:
        """Number of positions that fit."""
        return self._parts[0].shape[4]

    @property
    def length(self) -> int:
        """Number of positions filled in the longest sequence."""
        return int(self.lengths.max())

    @property
    def nbytes(self) -> int:
        """Size of all positions, filled or not."""
        states = sum(state.nbytes for state in self.states)
        return states + sum(part.nbytes for part in self._parts)

    def state(self, number: int) -> State:
        """A recurrent layer's state; zero for sequences of length 0."""
        return self.states[number].at(self.lengths)

    def sequence(self: _Self, i: int) -> _Self:
        """One sequence's part of the same memory, for its prompt, as sequences differ in length."""
        return self._between(i, i + 1)

    def first(self: _Self, count: int) -> _Self:
        """The part of the first ``count`` sequences."""
        return self._between(0, count)

    def _between(self: _Self, begin: int, end: int) -> _Self:
        same = copy(self)
        same._parts = [part[:, :, begin:end] for part in self._parts]
        same.states = [state.between(begin, end) for state in self.states]
        same.lengths = self.lengths[begin:end]
        same.recount()
        return same

    def recount(self) -> None:
        """To be called where lengths have changed through another part of the same memory."""

    def exchange(self, i: int, j: int) -> None:
        """Let two sequences change places."""
        here, there = [i, j], [j, i]
        end = int(self.lengths[here].max())
        for part in self._parts:
            part[:, :, here, :, :end] = part[:, :, there, :, :end]
        for state in self.states:
            state.exchange(i, j)
        self.lengths[here] = self.lengths[there]

    def copy(self, i: int, j: int, length: int) -> None:
        """Give sequence ``j`` the first positions of sequence ``i``, without recurrent states."""
        for part in self._parts:
            part[:, :, j, :, :length] = part[:, :, i, :, :length]
        self.lengths[j] = length

    def advance(self, tokens: int) -> None:
        """Count positions as filled once all layers have stored them."""
        self.lengths += tokens

    def truncate(self, length: int) -> None:
        """Discard everything from position ``length`` on in every sequence; with recurrent states, a longer one completely."""
        if self.states:  # they cannot go back
            self.lengths.masked_fill_(self.lengths > length, 0)
        else:
            self.lengths.clamp_(max=length)

    def clear(self, i: int) -> None:
        """Discard a sequence: a finished one keeps stepping with the others, overwriting its own memory from the start."""
        self.lengths[i] = 0

    def fill_from(self, single: Cache) -> None:
        """Give every sequence what a cache of one sequence, in the same form, has."""
        length = single.length
        for own, other in zip(self._parts, single._parts, strict=True):
            own[..., :length, :] = other[..., :length, :]
        for state, one in zip(self.states, single.states, strict=True):
            state.fill_from(one)
        self.truncate(0)
        self.advance(length)

    def enlarge(self, capacity: int) -> None:
        """Move to larger memory, keeping the contents; where there is none, nothing changes."""
        length = self.length
        parts = [old.new_zeros(*old.shape[:-2], capacity, old.shape[-1]) for old in self._parts]
        for part, old in zip(parts, self._parts, strict=True):
            part[..., :length, :] = old[..., :length, :]
        self._parts[:] = parts


def state_of(cache: Cache | None, number: int, kind: Recurrence, x: Tensor) -> State:
    """A recurrent layer's state for its input ``[b, t, hidden]``: the cache's, or a new one if there is none."""
    if cache is not None and cache.states:
        return cache.state(number)
    return State.empty(kind, len(x), x.device)


@dataclass(frozen=True)
class Quantized:
    """Keys or values of a layer."""

    codes: Tensor
    """int8 ``[batch, kv_heads, positions, head_dim]``."""
    scale: Tensor
    """float16 ``[batch, kv_heads, positions, 1]``."""

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def between(self, begin: int, end: int) -> Quantized:
        """Positions ``begin`` (inclusive) to ``end`` (exclusive)."""
        return Quantized(self.codes[:, :, begin:end], self.scale[:, :, begin:end])

    def widened(self, sequence: int, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Heads ``first`` (inclusive) to ``last`` (exclusive) of one sequence: ``[1, heads, positions, head_dim]``."""
        codes = self.codes[sequence : sequence + 1, first:last].to(dtype)
        return codes.mul_(self.scale[sequence : sequence + 1, first:last].float())


Stored = Tensor | Quantized
"""Keys or values of all positions, ``[batch, kv_heads, positions, head_dim]``, as stored in a cache."""


class HostCache(Cache, ABC):
    """A cache filled by the host; ``KVCache`` is the plain one. On a GPU, kernels fill a ``backends.gpu.cache.DeviceCache``."""

    def state(self, number: int) -> State:
        if bool((self.lengths == 0).any()):
            return super().state(number)
        return self.states[number]

    @abstractmethod
    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Stored, Stored]:
        """Append ``[batch, kv_heads, tokens, head_dim]``.

        Returns:
            All positions up to the end of the longest sequence, in the cache's representation; those past the end of a shorter
            one are undefined.
        """

    def _put(self, part: Tensor, new: Tensor) -> Tensor:
        """Append ``new`` to each sequence's part of a layer's keys or values; returns a view of all positions."""
        lengths, tokens = self.lengths.tolist(), new.shape[2]
        start, end = min(lengths), max(lengths) + tokens
        if start + tokens == end:
            part[:, :, start:end] = new
        else:
            for i, start in enumerate(lengths):
                part[i, :, start : start + tokens] = new[i]
        return part[:, :, :end]


class Places:
    """Where a cache's layers are: those with the same heads form one tensor."""

    def __init__(self, config: DecoderConfig) -> None:
        self.counts: Counter[Heads] = Counter()
        """Number of layers of each form, in the order of the cache's parts."""
        self._found: list[tuple[int, int]] = []
        for layer in filter(config.has_own_keys, range(config.num_layers)):
            heads = config.heads_of(layer)
            row = self.counts[heads]
            self.counts[heads] += 1
            self._found.append((list(self.counts).index(heads), row))
        if not self.counts:  # a cache of states alone still has a capacity
            self.counts[config.heads_of(0)] = 0

    def of(self, layer: int) -> tuple[int, int]:
        """The part of a layer of the cache, and its row there."""
        return self._found[layer]


class KVCache(HostCache):
    """Keys and values in a float dtype, possibly narrower than activations: ``[batch, kv_heads, capacity, head_dim]`` per layer."""

    def __init__(
        self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:  # fmt: skip
        self._places = Places(config)
        parts = [
            torch.zeros(layers, 2, batch, heads.count, capacity, heads.size, dtype=dtype, device=device)
            for heads, layers in self._places.counts.items()
        ]  # fmt: skip
        super().__init__(parts, states=empty_states(config, batch, device))

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, for all positions."""
        part, row = self._places.of(layer)
        keys, values = self._parts[part][row]
        return keys, values

    def read(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer up to position ``end``."""
        keys, values = self.layer(layer)
        return keys[:, :, :end], values[:, :, :end]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        stored_keys, stored_values = self.layer(layer)
        return self._put(stored_keys, keys), self._put(stored_values, values)
