"""What a model makes of a text that is given: log-probabilities of its tokens, and vectors for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from ..decoder.decoder import Decoder
from .edits import likeliest

Pooling = Literal["mean", "last"]
_PART: Final = 64
"""Tokens whose logits are in memory at a time."""


@dataclass(frozen=True)
class PromptLogprobs:
    """Of a text's tokens, each after those before it."""

    token_ids: list[int]
    logprobs: list[float]
    """Natural logarithms of probabilities, of all tokens but the first."""
    top_logprobs: list[tuple[tuple[int, float], ...]] | None = None
    """If asked for: at the same places, the most likely tokens with theirs."""


@torch.inference_mode()
def prompt_logprobs(decoder: Decoder, ids: Sequence[int], top: int) -> PromptLogprobs:
    """Of at least one token; ``top``: how many of the most likely tokens to name at each place."""
    found, best = list[float](), list[tuple[tuple[int, float], ...]]()
    cache = decoder.cache(batch=1, capacity=len(ids))
    tokens = torch.tensor([ids], device=decoder.backend.device)
    for start in range(0, len(ids) - 1, _PART):
        part = tokens[:, start : min(start + _PART, len(ids) - 1)]
        logprobs = decoder.forward(part, cache)[0].log_softmax(-1)
        following = tokens[0, start + 1 : start + 1 + part.shape[1], None]
        found += logprobs.gather(1, following)[:, 0].tolist()
        best += [likeliest(row, min(top, len(row))) for row in logprobs] if top else []
    return PromptLogprobs(list(ids), found, best if top else None)


@torch.inference_mode()
def embed(decoder: Decoder, ids: Sequence[int], pooling: Pooling) -> Tensor:
    """float32 ``[hidden]`` on the host: the mean of the tokens' hidden states behind the final norm, or the last one's."""
    hidden = decoder.hidden(torch.tensor([ids], device=decoder.backend.device))[0]
    return (hidden.mean(0) if pooling == "mean" else hidden[-1]).cpu()
