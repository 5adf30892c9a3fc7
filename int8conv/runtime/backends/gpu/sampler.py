"""The next token of every sequence of a batch, sampled on a GPU; imports triton.

No logits leave the device, and no step waits for the host: a token is fed directly to the next step while it is copied to the
host. So the host sees each token one step late, and may have started one step too many when a sequence ends.

Penalty and log-probabilities use PyTorch's operators; the kernel ``sample`` draws tokens, with other random numbers than the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ....kernels.gpu.sampling import Draws, sample
from ...generate.sampler import Choice, Request
from ...generate.sampling import LARGEST, Sampling, not_numbers, penalised

_SMALLEST: Final = 2.0**-126
"""Smallest normal float32; a lower temperature always draws the most likely token."""
_NOT_NUMBERS: Final = -1


class DeviceSampled:
    """The tokens of a step, on their way to the host.

    Args:
        tokens: int64 ``[b]`` on the device.
        shown: the same on the host once they have ``arrived``; -1 where logits were not finite.
        logprobs: float32 ``[b]`` on the host.
        arrived: a CUDA event; None: nothing to wait for.
    """

    def __init__(
        self,
        tokens: Tensor,
        shown: Tensor,
        logprobs: Tensor | None,
        arrived: torch.cuda.Event | None,
    ) -> None:
        self.tokens = tokens
        self._shown = shown
        self._logprobs = logprobs
        self._arrived = arrived

    def choice(self, i: int) -> Choice:
        if self._arrived is not None:
            self._arrived.synchronize()
        token = int(self._shown[i])
        if token == _NOT_NUMBERS:
            raise not_numbers("NaN or infinity")
        return Choice(token, None if self._logprobs is None else float(self._logprobs[i]))


class DeviceSampler:
    """Samples all sequences at once."""

    ahead = True

    def __init__(self, requests: Sequence[Request], vocab: int, device: torch.device) -> None:
        samplings = [each.sampling for each in requests]
        self._device = device
        self._draws = _draws(samplings, device)
        self._positions = torch.tensor([len(each.prompt) for each in requests], device=device)
        self._logprobs = any(each.logprobs for each in requests)
        self._seen: Tensor | None = None
        if any(each.repetition_penalty != 1 for each in samplings):
            penalties = [[_in_range(each.repetition_penalty)] for each in samplings]
            self._penalties = torch.tensor(penalties, dtype=torch.float32, device=device)
            self._seen = torch.zeros(len(requests), vocab, dtype=torch.bool, device=device)
            for seen, request in zip(self._seen, requests, strict=True):
                seen[torch.tensor(request.prompt, device=device)] = True
        self._ring = [self._host_memory(len(requests)) for _ in range(2)]

    def sample(self, logits: Tensor, active: Sequence[int]) -> DeviceSampled:
        rest = logits if self._seen is None else penalised(logits, self._penalties, self._seen)
        tokens = sample(rest, self._draws, self._positions)
        self._positions += 1
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        shown, logprobs = self._ring[0]
        self._ring.reverse()  # the host has read the results of two steps ago
        found = tokens.masked_fill(~logits.amax(-1).isfinite(), _NOT_NUMBERS)
        shown.copy_(found, non_blocking=True)
        if self._logprobs:
            own = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            logprobs.copy_(own, non_blocking=True)
        arrived: torch.cuda.Event | None = None
        if self._device.type == "cuda":
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        return DeviceSampled(tokens, shown, logprobs if self._logprobs else None, arrived)

    def _host_memory(self, batch: int) -> tuple[Tensor, Tensor]:
        pinned = self._device.type == "cuda"
        return (
            torch.empty(batch, dtype=torch.int64, pin_memory=pinned),
            torch.empty(batch, dtype=torch.float32, pin_memory=pinned),
        )


def _draws(samplings: Sequence[Sampling], device: torch.device) -> Draws:
    temperatures = [
        min(each.temperature, LARGEST) if each.temperature >= _SMALLEST else 0.0
        for each in samplings
    ]
    seeds = [each.generator().initial_seed() & 0xFFFFFFFF for each in samplings]
    return Draws(
        temperature=torch.tensor(temperatures, dtype=torch.float32, device=device),
        top_k=torch.tensor([min(each.top_k or 0, 2**31 - 1) for each in samplings], dtype=torch.int32, device=device),
        top_p=torch.tensor([_in_range(each.top_p or 1.0) for each in samplings], dtype=torch.float32, device=device),
        min_p=torch.tensor([each.min_p or 0.0 for each in samplings], dtype=torch.float32, device=device),
        seed=torch.tensor(seeds, dtype=torch.int64, device=device),
    )  # fmt: skip


def _in_range(option: float) -> float:
    """Clamp an option to float32, with room for a product."""
    return min(max(option, 1 / LARGEST), LARGEST)
