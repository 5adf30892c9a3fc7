"""A loaded model: logits, generation, footprint."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

import torch
from torch import Tensor
from typing_extensions import Unpack  # typing has it from Python 3.11 on

from ..errors import ArgumentError, GenerationError
from ..kernels.cpu.fused import prepare
from ..kernels.dispatch import Mode
from ..kernels.dispatch import prepare as prepare_linears
from ..kernels.weight import FallbackCounter
from ..progress import Progress, silent
from .backends.gpu.files import Loading
from .decoder.decoder import Decoder
from .devices import current
from .generate.batch import Batch
from .generate.generation import Continuation, Generation, continue_all, token_by_token
from .generate.likelihood import Likelihood, score_continuations
from .generate.lookup import can_guess, with_guesses
from .generate.options import GenerateOptions, OnText
from .generate.reading import Pooling, PromptLogprobs, embed, prompt_logprobs
from .generate.room import room
from .generate.sampling import Sampling, check_integer
from .generate.session import Session
from .generate.stream import Stream
from .measure.fallback import FallbackReport, fallback_report
from .measure.footprint import Footprint, Predictor, Setup, predictor_of
from .models.generation_config import GenerationDefaults
from .opening import OpenedModel
from .prompts import Prompt, PromptReader

_ENDED: Final = object()
_INTEGERS: Final = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Model(PromptReader):
    """A decoder with its tokenizer; made by ``int8conv.load``."""

    def __init__(
        self, opened: OpenedModel, decoder: Decoder, defaults: GenerationDefaults | None = None, mode: Mode | None = None
    ) -> None:  # fmt: skip
        super().__init__(opened, decoder.config, defaults or GenerationDefaults())
        self.decoder = decoder
        self.mode = mode
        """As requested."""
        self.fallback_counters: Mapping[str, FallbackCounter] = {}
        self.keeps_steps = decoder.backend.device.type == "cuda"
        """Whether a generation without a session leaves its cache, and the step that was captured for it, to the next one."""
        self._spare = deque[Session](maxlen=1)
        self.loading: Loading | None = None
        """What was copied to the GPU, and how fast."""

    def logits(self, token_ids: Tensor) -> Tensor:
        """Compute the logits of every position.

        Args:
            token_ids: int64 ``[batch, tokens]``.

        Returns:
            float32 ``[batch, tokens, vocab]``.

        Raises:
            ArgumentError: ``token_ids`` is not a matrix of integers.
            GenerationError: a token is outside the vocabulary, or there are more tokens than positions.
        """
        if token_ids.ndim != 2 or token_ids.dtype not in _INTEGERS or not len(token_ids):
            raise ArgumentError("token_ids", expected="int64 [batch, tokens]",
                                found=f"{token_ids.dtype} {list(token_ids.shape)}")  # fmt: skip
        self.opened.architecture.head()
        self._check_tokens(token_ids)
        device = self.decoder.backend.device
        with current(device):
            return self.decoder.forward(token_ids.to(device, torch.int64))

    def prompt_logprobs(self, prompt: Prompt, *, top_logprobs: int = 0) -> PromptLogprobs:
        """Log-probabilities of a text's tokens in the model's own distribution.

        Args:
            prompt: text, or token ids.
            top_logprobs: also name so many of the most likely tokens at each place.

        Raises:
            ArgumentError, GenerationError, TokenizerError: as ``generate``.
            UnsupportedModelError: the checkpoint has no head.
        """
        ids = self._checked_ids(prompt)
        check_integer("top_logprobs", top_logprobs, 0)
        self.opened.architecture.head()
        with current(self.decoder.backend.device), self._room(len(ids), 1):
            return prompt_logprobs(self.decoder, ids, top_logprobs)

    def embed(
        self, texts: Sequence[Prompt], *, pooling: Pooling = "mean", normalize: bool = True
    ) -> Tensor:
        """A vector for each text, as embedding models give them; also of checkpoints without a head.

        Args:
            texts: each text, or token ids.
            pooling: ``"mean"`` of the hidden states behind the final norm, or the ``"last"`` one.
            normalize: to length 1.

        Returns:
            float32 ``[texts, hidden]`` on the host.

        Raises:
            ArgumentError, GenerationError, TokenizerError: as ``generate``.
        """
        if pooling not in ("mean", "last"):
            raise ArgumentError("pooling", expected="mean or last", found=repr(pooling))
        ids = [self._checked_ids(each) for each in _listed(texts)]
        with current(self.decoder.backend.device):
            found = [embed(self.decoder, each, pooling) for each in ids]
        vectors = torch.stack(found) if found else torch.empty(0, self.config.hidden_size)
        return torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors

    def generate(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        session: Session | None = None,
        on_text: OnText | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Continue a prompt.

        Args:
            prompt: text, or token ids.
            sampling: how tokens are chosen; None: as the checkpoint's generation_config.json says (``self.sampling``).
            session: what it has of the prompt is not computed again, and it keeps this prompt and what follows.
            on_text: called with each piece of text as it comes.
            options: ``max_new_tokens``, ``min_new_tokens``, ``stop``, ``end_tokens``, ``logprobs``, ``top_logprobs``,
                ``logits_processor``, ``constraint``, ``special_tokens``, as ``GenerateOptions`` describes them, and fields of ``Sampling`` that
                are to differ from ``sampling``, such as ``temperature``.

        Returns:
            Text and token ids; without a tokenizer the text is empty.

        Raises:
            ArgumentError: an option out of range.
            GenerationError: an empty prompt, a token outside the vocabulary, a context that is too short, a cache for which there is
                no memory, or a session that is in use.
            TokenizerError: text is wanted, and there is no usable tokenizer.
        """
        continuation = self._continuation(prompt, self._asked(sampling, options), on_text)
        for _ in self._run(continuation, session):
            pass
        return continuation.result()

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        session: Session | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Stream:
        """Continue a prompt, piece by piece: ``for text in model.stream("Once")``.

        Everything is checked before it returns; ``close`` ends it early, and ``result`` is what ``generate`` returns.

        Args:
            prompt: as in ``generate``.
            sampling: as in ``generate``.
            session: as in ``generate``.
            options: as in ``generate``.

        Raises:
            ArgumentError, GenerationError, TokenizerError: as ``generate``.
        """
        pieces = deque[str]()
        continuation = self._continuation(prompt, self._asked(sampling, options), pieces.append)
        return Stream(self._run(continuation, session), continuation, pieces)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | None = None,
        *,
        n: int = 1,
        on_text: Callable[[int, str], None] | None = None,
        on_checked: Callable[[], None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[Generation]:
        """Continue several prompts, which may differ in length, together, in little more time than one.

        Each gets the result of ``generate`` with the same options, up to the rounding of float sums in W8A16 and in source precision;
        in W8A8 differences are slightly larger.

        Args:
            prompts: as in ``generate``, as are the arguments not named here.
            sampling: as in ``generate``; with a seed, generation ``i`` draws as alone with ``seed + i``.
            n: generations per prompt.
            on_text: called with a generation's number, from 0, and each piece of its text as it comes.
            on_checked: called once nothing can be wrong with the arguments any more, before the first token.
            options: as in ``generate``.

        Returns:
            ``n`` generations per prompt, in the prompts' order.

        Raises:
            ArgumentError, GenerationError, TokenizerError: as for ``generate``.
        """
        check_integer("n", n, 1)
        asked = self._asked(sampling, options)
        continuations = [
            self._continuation(
                prompt, asked.for_prompt(i), None if on_text is None else partial(on_text, i)
            )
            for i, prompt in enumerate(each for each in _listed(prompts) for _ in range(n))
        ]
        if asked.prompt_lookup and len(continuations) > 1:
            raise ArgumentError("prompt_lookup", expected="one prompt", found=len(continuations))
        if on_checked is not None:
            on_checked()
        if asked.prompt_lookup:
            for each in continuations:
                for _ in self._run(each, None):
                    pass
        elif continuations:
            capacity = max(len(each.prompt) + each.limit for each in continuations)
            batch = len(continuations)
            with current(self.decoder.backend.device):
                with self._room(capacity, batch):
                    cache = self.decoder.cache(batch=batch, capacity=capacity)
                continue_all(self.decoder, continuations, cache)
        return [each.result() for each in continuations]

    def continuation(
        self, prompt: Prompt, sampling: Sampling | None = None, *, on_text: OnText | None = None, **options: Unpack[GenerateOptions]
    ) -> Continuation:  # fmt: skip
        """A checked request for a ``Batch``; arguments and errors as in ``generate``, ``prompt_lookup`` without effect."""
        return self._continuation(prompt, self._asked(sampling, options), on_text)

    def batch(self, size: int) -> Batch:
        """Up to ``size`` continuations that are computed together and may come and go at any time."""
        check_integer("size", size, 1)
        return Batch(self.decoder, size, self._room)

    def score(
        self,
        requests: Sequence[tuple[Prompt, Prompt]],
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
        check_integer("batch_size", batch_size, 1)
        tokens = [self._tokens_of(prefix, continuation) for prefix, continuation in requests]
        for prefix, continuation in tokens:
            if not prefix:
                raise GenerationError("a prefix has no tokens")
            read, last = [*prefix, *continuation[:-1]], continuation[-1:]  # predicted alone
            for part in (read, last or read):
                self._check_ids(part)
        with current(self.decoder.backend.device), torch.inference_mode():
            return score_continuations(self.decoder, tokens, batch_size, progress)

    def prepare(self) -> None:
        """Compile code for a CPU, or load it from disk, now rather than at the first prompt and token."""
        if self.decoder.is_compiled:
            prepare()
            prepare_linears()

    def fallback_report(self) -> FallbackReport:
        """The values that the outlier fallback has handled since the model was loaded."""
        return fallback_report(self.fallback_counters)

    def predictor(self) -> Predictor:
        """The predictor of this model's memory, as it was loaded."""
        decoder = self.decoder
        dtype, kv_cache = (str(d).removeprefix("torch.") for d in (decoder.dtype, decoder.kv_cache))
        setup = Setup.of(decoder.backend.device, dtype, kv_cache, self.mode)
        return predictor_of(self.opened, setup, convert=False)

    def footprint(self, *, context: int | None = None, batch: int = 1) -> Footprint:
        """Predict memory for ``context`` positions (None: the maximum) and ``batch`` sequences, as this model was loaded."""
        return self.predictor().at(context, batch)

    def _run(
        self, continuation: Continuation, session: Session | None
    ) -> Generator[None, None, None]:
        """Generate, with a pause after each token; closing it leaves the session with what it has computed."""
        if session is None:
            yield from self._run_alone(continuation)
            return
        prompt, device = continuation.prompt, self.decoder.backend.device
        with session.in_use():
            with current(device):
                with self._room(len(prompt) + continuation.limit, 1):
                    cache = session.cache_for(prompt, continuation.limit)
                if continuation.lookup and can_guess(self.decoder):
                    steps = with_guesses(self.decoder, continuation, cache, session.steps, self.mode)  # fmt: skip
                else:
                    steps = token_by_token(self.decoder, [continuation], cache, session.steps)
            try:
                while True:
                    with current(device):
                        if next(steps, _ENDED) is _ENDED:
                            break
                    yield
            except GeneratorExit:
                session.keep(prompt + continuation.token_ids)
                raise
            session.keep(prompt + continuation.token_ids)

    def _run_alone(self, continuation: Continuation) -> Generator[None, None, None]:
        """Generate without a session of the caller's: nothing of an earlier prompt is used."""
        try:
            session = self._spare.pop()
        except IndexError:
            session = Session(self.decoder)
        yield from self._run(continuation, session)
        if self.keeps_steps:
            session.forget()
            self._spare.append(session)

    def _room(self, positions: int, batch: int) -> AbstractContextManager[None]:
        on_host = self.decoder.backend.device.type == "cpu"
        return room(lambda: self.footprint(context=positions, batch=batch), on_host=on_host)


def _listed(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise ArgumentError("prompts", expected="a list of prompts", found=repr(prompts)[:60])
    return prompts
