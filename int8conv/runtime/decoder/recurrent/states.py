"""States of layers that keep a fixed amount of memory per sequence instead of keys and values: recurrence and convolution.

A state holds what its layer needs of all tokens so far, so it cannot go back to an earlier position: a cache with states is
truncated to nothing (``Cache.truncate``). At length 0 a state counts as zero, whatever is in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.config import DecoderConfig
from ...models.recurrence import Recurrence


class State:
    """One layer's state, float32."""

    def __init__(self, matrix: Tensor, past: Tensor) -> None:
        self.matrix = matrix
        """``[batch, heads, key_size, value_size]``."""
        self.past = past
        """The last inputs of the convolution, ``[batch, channels, kernel - 1]``."""

    @classmethod
    def empty(cls, kind: Recurrence, batch: int, device: torch.device | None = None) -> State:
        """Before any token."""
        matrix, past = kind.shapes(batch)
        return cls(torch.zeros(matrix, device=device), torch.zeros(past, device=device))

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes + self.past.nbytes

    def between(self, begin: int, end: int) -> State:
        """The part of some sequences of the same memory."""
        return State(self.matrix[begin:end], self.past[begin:end])

    def exchange(self, i: int, j: int) -> None:
        """Let two sequences change places."""
        for part in self.parts:
            part[[i, j]] = part[[j, i]]

    def fill_from(self, single: State) -> None:
        """Give every sequence what a state of one sequence has."""
        self.matrix.copy_(single.matrix.expand_as(self.matrix))
        self.past.copy_(single.past.expand_as(self.past))

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """All of its memory."""
        return self.matrix, self.past

    def at(self, lengths: Tensor) -> State:
        """The state, with that of sequences of length 0 set to zero; the host does not read which they are."""
        fresh = lengths == 0
        for part in self.parts:
            part.masked_fill_(fresh.view(-1, *[1] * (part.ndim - 1)), 0)
        return self

    def convolved(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activated: bool = True
    ) -> Tensor:
        """The causal depthwise convolution, and SiLU of it if ``activated``: ``[b, t, channels]`` float32 -> the same.

        ``weight``: ``[channels, 1, kernel]``; ``bias``: ``[channels]``.
        """
        inputs = torch.cat([self.past, x.transpose(1, 2)], dim=-1)
        self.past.copy_(inputs[..., inputs.shape[-1] - self.past.shape[-1] :])
        if x.shape[1] == 1:
            y = (inputs * weight[:, 0]).sum(-1)[:, None]
            y = y if bias is None else y + bias
        else:
            y = F.conv1d(inputs, weight, bias, groups=len(weight)).transpose(1, 2)
        return F.silu(y) if activated else y


def empty_states(config: DecoderConfig, batch: int, device: torch.device | None = None) -> list[State]:  # fmt: skip
    """The states of a decoder's recurrent layers before any token."""
    kind = config.recurrence
    if kind is None:
        return []
    return [State.empty(kind, batch, device) for _ in range(sum(config.recurrent_layers))]
