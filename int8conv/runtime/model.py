"""A loaded model: logits, generation, footprint."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cached_property, partial
from operator import index
from typing import Final, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack  # typing has it from Python 3.11 on

from ..errors import ArgumentError, GenerationError, TokenizerError
from ..kernels.cpu.fused import prepare
from ..kernels.dispatch import Mode
from ..kernels.weight import FallbackCounter
from .backends.gpu.files import Loading
from .decoder.decoder import Decoder
from .devices import current
from .generate.generation import Continuation, Generation, continue_all, token_by_token
from .generate.options import Asked, GenerateOptions, OnText, read_options
from .generate.room import room
from .generate.sampling import Sampling, check_integer
from .generate.scoring import Pooling, Scores, embed, score
from .generate.session import Session
from .generate.stream import Stream
from .measure.fallback import FallbackReport, fallback_report
from .measure.footprint import Footprint, Predictor, Setup, predictor_of
from .models.generation_config import GenerationDefaults
from .opening import OpenedModel
from .text.detokenizer import Detokenizer
from .text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
"""Text, or token ids."""
_ENDED: Final = object()
DEFAULT_NEW_TOKENS = 128


class Model:
    """A decoder with its tokenizer; made by ``int8conv.load``."""

    def __init__(
        self, opened: OpenedModel, decoder: Decoder, defaults: GenerationDefaults | None = None, mode: Mode | None = None
    ) -> None:  # fmt: skip
        self._given: Tokenizer | Literal[False] | None = None
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

    def use_tokenizer(self, tokenizer: Tokenizer | Literal[False] | None) -> None:
        """Another tokenizer than the folder's, False for none at all, None for the folder's."""
        self._given = tokenizer
        self.__dict__.pop("tokenizer", None)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The one that was given, else the folder's, loaded when first used.

        Raises:
            TokenizerError: there is none, or an unusable one.
        """
        if self._given is False:
            raise TokenizerError("the model was loaded without a tokenizer", file=self.folder, hint="give token ids")  # fmt: skip
        return self._given or Tokenizer.load(self.folder)

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is text; else token ids alone go in and come out."""
        return self._given is not False and (self._given is not None or Tokenizer.is_in(self.folder))  # fmt: skip

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
        self.opened.architecture.head()
        self._check_tokens(token_ids, new_tokens=0)
        device = self.decoder.backend.device
        with current(device):
            return self.decoder.forward(token_ids.to(device))

    def score(self, prompt: Prompt, *, top_logprobs: int = 0) -> Scores:
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
            return score(self.decoder, ids, top_logprobs)

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

    def _checked_ids(self, prompt: Prompt) -> list[int]:
        ids = self.token_ids(prompt)
        self._limit(ids, 0)
        return ids

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
                ``logits_processor``, ``special_tokens``, as ``GenerateOptions`` describes them, and fields of ``Sampling`` that
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
            prompt, sampling, session, options: as in ``generate``.

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
        """Continue several prompts, which may differ in length, together: in the time of little more than one.

        Each gets what ``generate`` gives it alone with the same options, in W8A16 and in source precision up to the rounding of
        float sums; in W8A8 small differences are larger.

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
            ArgumentError, GenerationError, TokenizerError: as ``generate``.
        """
        check_integer("n", n, 1)
        asked = self._asked(sampling, options)
        continuations = [
            self._continuation(
                prompt, asked.for_prompt(i), None if on_text is None else partial(on_text, i)
            )
            for i, prompt in enumerate(each for each in _listed(prompts) for _ in range(n))
        ]
        if on_checked is not None:
            on_checked()
        if continuations:
            capacity = max(len(each.prompt) + each.limit for each in continuations)
            batch = len(continuations)
            with current(self.decoder.backend.device):
                with self._room(capacity, batch):
                    cache = self.decoder.cache(batch=batch, capacity=capacity)
                continue_all(self.decoder, continuations, cache)
        return [each.result() for each in continuations]

    def positions(self, prompt: Prompt, max_new_tokens: int | None = None) -> int:
        """Positions of the cache that ``generate`` makes for a prompt.

        Raises:
            ArgumentError, GenerationError, TokenizerError: as ``generate``.
        """
        ids = self.token_ids(prompt)
        return len(ids) + self._limit(ids, max_new_tokens)

    def token_ids(self, prompt: Prompt) -> list[int]:
        """A prompt as ``generate`` takes it: text through the tokenizer, ids as they are.

        Raises:
            ArgumentError: it is neither.
            TokenizerError: it is text, and there is no usable tokenizer.
        """
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if not isinstance(prompt, bytes):
            with suppress(TypeError):
                return [index(token) for token in prompt]
        raise ArgumentError("prompt", expected="text or token ids", found=repr(prompt)[:60])

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

    def _asked(self, sampling: Sampling | None, options: GenerateOptions) -> Asked:
        asked = read_options(self.sampling if sampling is None else sampling, options)
        highest = max(asked.sampling.logit_bias or (), default=0)
        if highest >= self.config.vocab_size:
            raise ArgumentError("logit_bias", expected=f"tokens 0..{self.config.vocab_size - 1}", found=highest)  # fmt: skip
        return asked

    def _continuation(self, prompt: Prompt, asked: Asked, on_text: OnText | None) -> Continuation:
        self.opened.architecture.head()  # without one there are no logits
        ids = self.token_ids(prompt)
        tokenizer = self.tokenizer if self.has_tokenizer else None
        stops = self.defaults.stop if asked.stop is None and tokenizer is not None else asked.stop
        ends = self._end_tokens(asked.end_tokens)
        if stops:  # one that is a special token never occurs in the text
            numbers = {self.tokenizer.token_id(stop) for stop in stops}
            ends |= {n for n in numbers if n is not None and self.tokenizer.is_special(n)}
        if tokenizer is not None and asked.special_tokens:
            tokenizer = tokenizer.keeping_special()
        return Continuation(
            ids, self._limit(ids, asked.max_new_tokens), asked.sampling, end_tokens=self.end_tokens | ends,
            stops=stops or (), logprobs=asked.logprobs, top_logprobs=asked.top_logprobs,
            min_new_tokens=asked.min_new_tokens, processor=asked.logits_processor, on_text=on_text,
            detokenizer=None if tokenizer is None else Detokenizer(tokenizer, ids),
        )  # fmt: skip

    def _end_tokens(self, asked: Sequence[int | str]) -> frozenset[int]:
        found = set[int]()
        for each in asked:
            token = self.tokenizer.token_id(each) if isinstance(each, str) else index(each)
            if token is None or token >= self.config.vocab_size:
                raise ArgumentError("end_tokens", expected="tokens of the vocabulary", found=repr(each))  # fmt: skip
            found.add(token)
        return frozenset(found)

    def _run(
        self, continuation: Continuation, session: Session | None
    ) -> Generator[None, None, None]:
        """Generate, with a pause after each token; closing it leaves the session with what it has computed."""
        session = Session(self.decoder) if session is None else session
        prompt, device = continuation.prompt, self.decoder.backend.device
        with session.in_use():
            with current(device):
                with self._room(len(prompt) + continuation.limit, 1):
                    cache = session.cache_for(prompt, continuation.limit)
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

    def _room(self, positions: int, batch: int) -> AbstractContextManager[None]:
        on_host = self.decoder.backend.device.type == "cpu"
        return room(lambda: self.footprint(context=positions, batch=batch), on_host=on_host)

    def _limit(self, ids: Sequence[int], max_new_tokens: int | None) -> int:
        """How many tokens may follow a prompt, which is checked."""
        if not ids:
            raise GenerationError("the prompt has no tokens")
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


def _listed(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise ArgumentError("prompts", expected="a list of prompts", found=repr(prompts)[:60])
    return prompts
