"""The static caches of a GPU: allocated once, with lengths on the device, for use in a CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from ...decoder.cache import Cache, Places, Quantized, Stored
from ...decoder.latent_cache import LatentParts, latent_parts
from ...decoder.quantized_cache import quantized_parts
from ...decoder.recurrent.states import empty_states
from ...models.config import DecoderConfig


class StaticCache(Cache):
    """The host also tracks the longest length (``length``): prompts are not captured and need it."""

    length = 0

    def enlarge(self, capacity: int) -> None:
        super().enlarge(rounded(capacity))

    def recount(self) -> None:
        self.length = int(self.lengths.max())

    def advance(self, tokens: int) -> None:
        super().advance(tokens)
        self.length += tokens

    def truncate(self, length: int) -> None:
        super().truncate(length)
        if self.states and 0 < length < self.length:  # longer sequences are empty now
            self.recount()
        else:
            self.length = min(self.length, length)


def rounded(capacity: int) -> int:
    """To a multiple of 16 positions: no tensor's address or stride is then less aligned in one cache than in another, for which Triton would
    compile kernels anew."""
    return -(-capacity // 16) * 16


class DeviceCache(StaticCache):
    """Keys and values of every layer, each ``[batch, kv_heads, capacity, head_dim]``, in 16 bits or int8 with scales, and states."""

    def __init__(
        self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:  # fmt: skip
        self._places = Places(config)
        self._each = 2 if dtype == torch.int8 else 1
        if dtype == torch.int8:
            parts = quantized_parts(config, batch=batch, capacity=capacity, device=device)
        else:
            parts = [
                torch.zeros(layers, 2, batch, heads.count, capacity, heads.size, dtype=dtype, device=device)
                for heads, layers in self._places.counts.items()
            ]  # fmt: skip
        super().__init__(parts, torch.int32, empty_states(config, batch, device))

    def layer(self, layer: int) -> tuple[Stored, Stored]:
        """Keys and values of a layer, for all positions."""
        keys, values = (self._stored(layer, kind) for kind in (0, 1))
        return keys, values

    def _stored(self, layer: int, kind: int) -> Stored:
        form, row = self._places.of(layer)
        parts = self._parts[form * self._each : (form + 1) * self._each]
        first, *scales = (part[row, kind] for part in parts)
        return Quantized(first, *scales) if scales else first


class DeviceLatentCache(LatentParts, StaticCache):
    """Latents and rotated keys. A step reads all of its memory, as a graph has one shape, and masks what is not filled."""

    def __init__(
        self, config: DecoderConfig, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:  # fmt: skip
        parts = latent_parts(config, batch=batch, capacity=capacity, dtype=dtype, device=device)
        super().__init__(parts, torch.int32)

    def _put(self, part: Tensor, new: Tensor) -> Tensor:
        tokens = new.shape[2]
        if tokens > 1:  # a prompt: all sequences are of one length
            part[:, :, self.length : self.length + tokens] = new
            return part[:, :, : self.length + tokens]
        where = self.lengths.long().clamp(max=part.shape[2] - 1)
        part.scatter_(2, where.view(-1, 1, 1, 1).expand(new.shape), new.to(part.dtype))
        return part
