"""A loaded model: logits, generation, footprint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor
from typing_extensions import Unpack  # typing has it from Python 3.11 on

from ..errors import ArgumentError, GenerationError
from ..kernels.cpu.fused import prepare
from ..kernels.dispatch import Mode
from ..kernels.weight import FallbackCounter
from ..progress import Progress, silent
from .backends.gpu.files import Loading
from .decoder.decoder import Decoder
from .devices import current
from .generate.generation import Continuation, Generation, continue_all
from .generate.likelihood import Likelihood, score_continuations
from .generate.sampling import Sampling, SamplingOptions
from .generate.session import Session
from .measure.fallback import FallbackReport, fallback_report
from .measure.footprint import Footprint, Predictor, Setup, predictor_of
from .models.generation_config import GenerationDefaults
from .opening import OpenedModel
from .text.detokenizer import Detokenizer
from .text.stopping import read_stops
from .text.tokenizer import Tokenizer

DEFAULT_NEW_TOKENS = 128


class Model:
    """A decoder with its tokenizer; made by ``int8conv.load``."""

    def __init__(
        self, opened: OpenedModel, decoder: Decoder, defaults: GenerationDefaults | None = None, mode: Mode | None = None
    ) -> None:  # fmt: skip
        self.opened = opened
        self.folder = opened.folder
        self.config = decoder.config
        self.decoder = decoder
        self.mode = mode
        """As it was asked for."""
        self.defaults = defaults or GenerationDefaults()
        """What ``generate`` does where it is told nothing; from the folder's generation_config.json."""
        self.sampling = Sampling(
            self.defaults.temperature, self.defaults.top_k, self.defaults.top_p, self.defaults.min_p,
            self.defaults.repetition_penalty,
        )  # fmt: skip
        """How tokens are chosen unless ``generate`` is told otherwise; from generation_config.json as well."""
        self.end_tokens = self.defaults.end_tokens
        self.fallback_counters: Mapping[str, FallbackCounter] = {}
        self.check_files: Callable[[], None] = lambda: None
        """Raises FileChangedError if the files of the weights were changed in place since they were opened."""
        self.loading: Loading | None = None
        """What went to the GPU, and how fast."""

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
        device = self.decoder.backend.device
        with current(device):
            return self.decoder.forward(token_ids.to(device))

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        *,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        logprobs: bool = False,
        end_tokens: Sequence[int] = (),
        session: Session | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation:
        """Continue a prompt.

        Args:
            prompt: text, or token ids.
            sampling: how tokens are chosen; None: as the checkpoint's generation_config.json says (``self.sampling``).
            max_new_tokens: at most so many; None: as generation_config.json says, else 128, or fewer where the context ends.
            stop: text at which to end, which is not part of the result; an empty list: none; None: as
                generation_config.json says.
            logprobs: also return each chosen token's log-probability.
            end_tokens: end at these too, beside the model's own.
            session: what it has of the prompt is not computed again, and it keeps this prompt and what follows.
            on_text: called with each piece of text as it comes.
            options: fields of ``Sampling`` that are to differ from ``sampling``: ``temperature``, ``top_k``, ``top_p``,
                ``min_p``, ``repetition_penalty``, ``seed``.

        Raises:
            ArgumentError: an option out of range.
            GenerationError: an empty prompt, a token outside the vocabulary, or a context that is too short.
            TokenizerError: the folder has no usable tokenizer.
        """
        chosen = (sampling or self.sampling).changed(options)
        continuation = self._continuation(
            prompt, max_new_tokens, chosen, stop, logprobs=logprobs, end_tokens=end_tokens, on_text=on_text,
        )  # fmt: skip
        with current(self.decoder.backend.device):
            session = Session(self.decoder) if session is None else session
            cache = session.cache_for(continuation.prompt, continuation.limit)
            continue_all(self.decoder, [continuation], cache, session.steps)
            session.keep(continuation.prompt + continuation.token_ids)
        return continuation.result()

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: Sampling | None = None,
        *,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        logprobs: bool = False,
        on_text: Callable[[int, str], None] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Generation]:
        """Continue several prompts, which may differ in length, together: in the time of little more than one.

        Each gets what ``generate`` gives it alone with the same options, in W8A16 and in source precision up to the rounding of
        float sums; in W8A8 small differences are larger.

        Args:
            prompts: as in ``generate``, as are the arguments not named here.
            sampling: as in ``generate``; with a seed, prompt ``i`` draws as alone with ``seed + i``.
            on_text: called with a prompt's number, from 0, and each piece of its text as it comes.

        Returns:
            A generation per prompt, in their order.

        Raises:
            ArgumentError, GenerationError, TokenizerError: as ``generate``.
        """
        chosen = (sampling or self.sampling).changed(options)
        continuations = [
            self._continuation(
                prompt, max_new_tokens, chosen if chosen.seed is None else replace(chosen, seed=chosen.seed + i), stop,
                logprobs=logprobs, on_text=None if on_text is None else partial(on_text, i),
            )
            for i, prompt in enumerate(prompts)
        ]  # fmt: skip
        if continuations:
            capacity = max(len(each.prompt) + each.limit for each in continuations)
            with current(self.decoder.backend.device):
                cache = self.decoder.cache(batch=len(continuations), capacity=capacity)
                continue_all(self.decoder, continuations, cache)
        return [each.result() for each in continuations]

    def score(
        self,
        requests: Sequence[tuple[str | Sequence[int], str | Sequence[int]]],
        batch_size: int = 8,
        *,
        progress: Progress = silent,
    ) -> list[Likelihood]:
        """How probable continuations are: a likelihood per request.

        A prefix is computed once for all of its continuations, and so is what several prefixes begin with in common. Scores do not
        depend on ``batch_size`` beyond the rounding of float sums, if the model was loaded with a mode; without one, the
        number of tokens that pass together chooses it.

        Args:
            requests: ``(prefix, continuation)``, each text or token ids. Of two texts the tokens are those of both in one piece;
                those that the prefix has alone are taken for it.
            batch_size: continuations of one prefix that pass together.
            progress: called with the number of requests scored so far.

        Raises:
            ArgumentError: a batch size below 1, or text and token ids in one request.
            GenerationError: a prefix without tokens, a token outside the vocabulary, or more tokens than positions.
            TokenizerError: the folder has no usable tokenizer.
        """
        if batch_size < 1:
            raise ArgumentError("batch_size", expected="1 or more", found=batch_size)
        tokens = [self._tokens_of(prefix, continuation) for prefix, continuation in requests]
        for prefix, continuation in tokens:
            if not prefix:
                raise GenerationError("a prefix has no tokens")
            read, last = (
                [*prefix, *continuation[:-1]],
                continuation[-1:],
            )  # which is predicted alone
            for part in (read, last or read):
                self._check_tokens(torch.tensor([part]), new_tokens=0)
        with current(self.decoder.backend.device), torch.inference_mode():
            return score_continuations(self.decoder, tokens, batch_size, progress)

    def positions(self, prompt: str | Sequence[int], max_new_tokens: int | None = None) -> int:
        """Positions of the cache that ``generate`` makes for a prompt.

        Raises:
            ArgumentError, GenerationError, TokenizerError: as ``generate``.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return len(ids) + self._limit(ids, max_new_tokens)

    def prepare(self) -> None:
        """Have what single tokens need on a CPU compiled, or loaded from disk, now rather than at the first of them."""
        if any(block.fused is not None for block in self.decoder.blocks):
            prepare()

    def fallback_report(self) -> FallbackReport:
        """What the outlier fallback has taken since the model was loaded."""
        return fallback_report(self.fallback_counters)

    def predictor(self) -> Predictor:
        """What this model's memory is predicted with, as it was loaded."""
        decoder = self.decoder
        dtype, kv_cache = (str(d).removeprefix("torch.") for d in (decoder.dtype, decoder.kv_cache))
        setup = Setup.of(decoder.backend.device, dtype, kv_cache, self.mode)
        return predictor_of(self.opened, setup, convert=False)

    def footprint(self, *, context: int | None = None, batch: int = 1) -> Footprint:
        """Predicted memory at ``context`` positions (None: the most) and ``batch`` sequences, as this model was loaded."""
        return self.predictor().at(context, batch)

    def _tokens_of(
        self, prefix: str | Sequence[int], continuation: str | Sequence[int]
    ) -> tuple[list[int], list[int]]:
        if isinstance(prefix, str) and isinstance(continuation, str):
            first, both = (self.tokenizer.encode(text) for text in (prefix, prefix + continuation))
            return first, both[len(first) :]
        if isinstance(prefix, str) or isinstance(continuation, str):
            raise ArgumentError("request", expected="two texts, or two sequences of token ids",
                                found="one of each")  # fmt: skip
        return list(prefix), list(continuation)

    def _continuation(
        self, prompt: str | Sequence[int], max_new_tokens: int | None, sampling: Sampling,
        stop: str | Sequence[str] | None, *, logprobs: bool, end_tokens: Sequence[int] = (),
        on_text: Callable[[str], None] | None,
    ) -> Continuation:  # fmt: skip
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return Continuation(
            ids, self._limit(ids, max_new_tokens), sampling, end_tokens=self.end_tokens.union(end_tokens),
            stops=read_stops(self.defaults.stop if stop is None else stop), logprobs=logprobs,
            detokenizer=Detokenizer(self.tokenizer, ids), on_text=on_text,
        )  # fmt: skip

    def _limit(self, ids: Sequence[int], max_new_tokens: int | None) -> int:
        """How many tokens may follow a prompt, which is checked."""
        if not ids:
            raise GenerationError("the prompt has no tokens")
        if max_new_tokens is not None and max_new_tokens < 0:
            raise ArgumentError("max_new_tokens", expected="0 or more", found=max_new_tokens)
        left = self.config.max_positions - len(ids)
        default = self.defaults.max_new_tokens or DEFAULT_NEW_TOKENS
        limit = max(0, min(default, left)) if max_new_tokens is None else max_new_tokens
        self._check_tokens(torch.tensor([ids]), limit)
        return limit

    def _check_tokens(self, token_ids: Tensor, new_tokens: int) -> None:
        self.check_files()
        length = token_ids.shape[1]
        if length + new_tokens > self.config.max_positions or length == 0:
            raise GenerationError(
                f"{length} prompt tokens and {new_tokens} new tokens do not fit the context",
                expected=f"1 to {self.config.max_positions} positions",
                found=length + new_tokens,
            )  # fmt: skip
        low, high = int(token_ids.min()), int(token_ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise GenerationError(
                "token outside the vocabulary", expected=f"0..{self.config.vocab_size - 1}",
                found=low if low < 0 else high,
            )  # fmt: skip
