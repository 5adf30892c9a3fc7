"""A loaded model: logits, generation, footprint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, GenerationError
from ..kernels import NetCounter
from .decoder import Decoder
from .footprint import Footprint, predict_footprint
from .net import NetReport, net_report
from .sampling import Sampling, next_token
from .tokenizer import Tokenizer

DEFAULT_NEW_TOKENS = 128
PREFILL_TOKENS = 2048
"""Tokens of a prompt that pass through the decoder at once."""


@dataclass(frozen=True)
class Generation:
    """What was generated, without the prompt."""

    text: str
    token_ids: list[int]
    finish_reason: str
    """``"stop"`` at an end token, else ``"length"``."""


class Model:
    """A decoder with its tokenizer; made by ``int8conv.load``."""

    def __init__(self, folder: Path, decoder: Decoder, end_tokens: frozenset[int]) -> None:
        self.folder = folder
        self.config = decoder.config
        self.decoder = decoder
        self.end_tokens = end_tokens
        self.net_counters: Mapping[str, NetCounter] = {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer, loaded when first used."""
        return Tokenizer.load(self.folder)

    def logits(self, token_ids: Tensor) -> Tensor:
        """Logits of every position.

        Args:
            token_ids: int64 ``[batch, tokens]``.

        Returns:
            float32 ``[batch, tokens, vocab]``.

        Raises:
            ArgumentError: not two axes of integers.
            GenerationError: a token outside the vocabulary, or more tokens than positions.
        """
        if token_ids.ndim != 2 or token_ids.is_floating_point():
            raise ArgumentError("token_ids", expected="int64 [batch, tokens]",
                                found=f"{token_ids.dtype} {list(token_ids.shape)}")  # fmt: skip
        self._check_tokens(token_ids, new_tokens=0)
        return self.decoder.forward(token_ids.to(self.decoder.kernels.device))

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """Continue a prompt.

        Args:
            prompt: text, or token ids.
            max_new_tokens: at most so many; None: 128, or fewer where the context ends.
            temperature: 0 takes the most likely token each time.
            top_k: draw from the k most likely tokens only.
            top_p: draw from the fewest tokens that have this probability together.
            seed: makes drawing repeatable.
            on_text: called with each piece of text as it comes.

        Raises:
            ArgumentError: a sampling option out of range.
            GenerationError: an empty prompt, a token outside the vocabulary, or a context that is too short.
            TokenizerError: the folder has no usable tokenizer.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        token_ids: list[int] = []
        stream = self._stream(prompt, max_new_tokens, sampling, token_ids)
        pieces = []
        for piece in self.tokenizer.decode_stream(stream):
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)
        ended = bool(token_ids) and token_ids[-1] in self.end_tokens
        return Generation("".join(pieces), token_ids, "stop" if ended else "length")

    def net_report(self) -> NetReport:
        """What the safety net has taken since the model was loaded."""
        return net_report(self.net_counters)

    def footprint(self, *, context: int | None = None, batch: int = 1) -> Footprint:
        """Predicted memory at ``context`` positions (None: the most) and ``batch`` sequences, in this model's dtype."""
        dtype = str(self.decoder.dtype).removeprefix("torch.")
        return predict_footprint(self.folder, context=context, batch=batch, dtype=dtype)

    def _stream(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int | None,
        sampling: Sampling,
        token_ids: list[int],
    ) -> Iterator[int]:
        """Yield new tokens, and keep them in ``token_ids`` with the end token, which is not yielded."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise GenerationError("the prompt has no tokens")
        left = self.config.max_positions - len(ids)
        default = max(0, min(DEFAULT_NEW_TOKENS, left))
        count = default if max_new_tokens is None else max_new_tokens
        if count < 0:
            raise ArgumentError("max_new_tokens", expected="0 or more", found=count)
        tokens = torch.tensor([ids])
        self._check_tokens(tokens, count)
        kernels, dtype = self.decoder.kernels, self.decoder.dtype
        cache = kernels.cache(self.config, batch=1, capacity=len(ids) + count, dtype=dtype)
        step = kernels.steps(self.decoder, cache)
        generator = sampling.generator()
        for i in range(count):
            logits = self._prefill(tokens, cache) if i == 0 else step(tokens.to(kernels.device))
            token = next_token(logits[0, -1].cpu(), sampling, generator)
            token_ids.append(token)
            if token in self.end_tokens:
                return
            yield token
            tokens = torch.tensor([[token]])

    def _prefill(self, tokens: Tensor, cache: Any) -> Tensor:
        """The last token's logits; a long prompt passes in parts, which bounds the activations' memory."""
        parts = tokens.to(self.decoder.kernels.device).split_with_sizes(
            [min(PREFILL_TOKENS, tokens.shape[1] - i) for i in range(0, tokens.shape[1], PREFILL_TOKENS)],
            dim=1,
        )  # fmt: skip
        return [self.decoder.forward(part, cache, last_only=True) for part in parts][-1]

    def _check_tokens(self, token_ids: Tensor, new_tokens: int) -> None:
        length = token_ids.shape[1]
        if length + new_tokens > self.config.max_positions or length == 0:
            raise GenerationError(
                f"{length} tokens of prompt and {new_tokens} new ones do not fit the context",
                expected=f"1 to {self.config.max_positions} positions",
                found=length + new_tokens,
            )  # fmt: skip
        low, high = int(token_ids.min()), int(token_ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise GenerationError(
                "token outside the vocabulary", expected=f"0..{self.config.vocab_size - 1}",
                found=low if low < 0 else high,
            )  # fmt: skip
