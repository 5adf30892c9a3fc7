"""Prompts and what follows them: the loop from logits to tokens to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .activations import PREFILL_TOKENS
from .decoder import Decoder
from .sampling import Sampling, next_token
from .stopping import StopScanner
from .tokenizer import Detokenizer


@dataclass(frozen=True)
class Generation:
    """What was generated, without the prompt."""

    text: str
    """Without end token and stop string, and without a character that the limit cut in two."""
    token_ids: list[int]
    """All that were chosen, the end token and those of a stop string among them."""
    finish_reason: Literal["stop", "length"]
    """``"stop"`` at an end token or stop string, else ``"length"``."""
    logprobs: list[float] | None = None
    """If asked for: of each of ``token_ids``, the natural logarithm of its probability in the model's own distribution, before
    penalty, temperature and selection."""


class Continuation:
    """One prompt, and what follows it as it comes."""

    def __init__(
        self, prompt: Sequence[int], limit: int, sampling: Sampling, *, end_tokens: frozenset[int],
        detokenizer: Detokenizer, stops: Sequence[str] = (), logprobs: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.prompt = list(prompt)
        self.limit = limit
        self.token_ids: list[int] = []
        self.done = limit == 0
        self._sampling = sampling
        self._generator = sampling.generator()
        self._seen: Tensor | None = None
        self._end_tokens = end_tokens
        self._detokenizer = detokenizer
        self._scanner = StopScanner(stops)
        self._logprobs: list[float] | None = [] if logprobs else None
        self._pieces: list[str] = []
        self._on_text = on_text
        self._finish_reason: Literal["stop", "length"] = "length"

    def take(self, logits: Tensor) -> int:
        """Choose the next token from logits ``[vocab]``, float32 on the CPU."""
        token = next_token(logits, self._sampling, self._generator, self._tokens_seen(logits))
        self.token_ids.append(token)
        if self._logprobs is not None:
            self._logprobs.append(float(logits.log_softmax(-1)[token]))
        ended = token in self._end_tokens
        if not ended:
            self._show(self._scanner.push(self._detokenizer.push(token)))
        if ended or self._scanner.stopped:
            self._finish_reason = "stop"
        self.done = self._finish_reason == "stop" or len(self.token_ids) == self.limit
        if self.done:
            self._show(self._scanner.push(self._detokenizer.finish()) + self._scanner.finish())
        return token

    def result(self) -> Generation:
        return Generation(
            "".join(self._pieces), self.token_ids, self._finish_reason, self._logprobs
        )

    def _show(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            if self._on_text is not None:
                self._on_text(text)

    def _tokens_seen(self, logits: Tensor) -> Tensor | None:
        """Bool ``[vocab]``: which tokens have occurred; None where nobody wants to know."""
        if self._sampling.repetition_penalty == 1:
            return None
        if self._seen is None:
            self._seen = torch.zeros(logits.shape, dtype=torch.bool)
            self._seen[self.prompt] = True
        self._seen[self.token_ids[-1:]] = True
        return self._seen


def continue_all(decoder: Decoder, continuations: Sequence[Continuation], cache: Any) -> None:
    """Run until all are done. The cache has a place for each; what it has there already of a prompt is not computed again."""
    device, batch = decoder.kernels.device, len(continuations)
    tokens = [0] * batch  # those of sequences that are done count for nothing
    for i, each in enumerate(continuations):
        if not each.done:
            part = cache.sequence(i) if batch > 1 else cache
            tokens[i] = each.take(_prefill(decoder, torch.tensor([each.prompt]), part)[0, -1].cpu())
    step = decoder.kernels.steps(decoder, cache)
    going = list(range(batch))
    while not all(each.done for each in continuations):
        for i in [i for i in going if continuations[i].done]:
            cache.clear(i)
        going = [i for i in going if not continuations[i].done]
        logits = step(torch.tensor(tokens, device=device)[:, None])[:, -1].cpu()
        for i in going:
            tokens[i] = continuations[i].take(logits[i])


def _prefill(decoder: Decoder, tokens: Tensor, cache: Any) -> Tensor:
    """The last token's logits ``[1, 1, vocab]``; a long prompt passes in parts, which bounds the activations' memory."""
    tokens = tokens[:, cache.length :].to(decoder.kernels.device)
    size = PREFILL_TOKENS[decoder.kernels.device.type]
    parts = [tokens[:, i : i + size] for i in range(0, tokens.shape[1], size)]
    return [decoder.forward(part, cache, last_only=True) for part in parts][-1]
