"""Prompts and options as a model takes them: checked, and as tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from operator import index
from typing import Final, Literal

from torch import Tensor

from ..errors import ArgumentError, GenerationError, TokenizerError
from .generate.constraint import TokenForms
from .generate.generation import Continuation
from .generate.options import Asked, GenerateOptions, OnText, read_options
from .generate.sampling import Sampling
from .models.config import DecoderConfig
from .models.generation_config import GenerationDefaults
from .opening import OpenedModel
from .text.detokenizer import Detokenizer
from .text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
"""Text, or token ids."""
DEFAULT_NEW_TOKENS: Final = 128


class PromptReader:
    """The part of a ``Model`` that reads what it is asked for."""

    def __init__(
        self, opened: OpenedModel, config: DecoderConfig, defaults: GenerationDefaults
    ) -> None:
        self._given: Tokenizer | Literal[False] | None = None
        self._prepared: dict[frozenset[int], TokenForms] = {}
        """By end tokens."""
        self.opened = opened
        self.folder = opened.folder
        self.config = config
        self.defaults = defaults
        """What ``generate`` does where it is told nothing; from the folder's generation_config.json."""
        self.sampling = Sampling(
            defaults.temperature, defaults.top_k, defaults.top_p, defaults.min_p,
            defaults.repetition_penalty,
        )  # fmt: skip
        """How tokens are chosen unless ``generate`` is told otherwise; from generation_config.json as well."""
        self.end_tokens = defaults.end_tokens
        self.check_files: Callable[[], None] = lambda: None
        """Raises FileChangedError if the files of the weights were changed in place since they were opened."""

    def use_tokenizer(self, tokenizer: Tokenizer | Literal[False] | None) -> None:
        """Another tokenizer than the folder's, False for none at all, None for the folder's."""
        self._given = tokenizer
        self.__dict__.pop("tokenizer", None)
        self._prepared.clear()

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

    def _tokens_of(self, prefix: Prompt, continuation: Prompt) -> tuple[list[int], list[int]]:
        if isinstance(prefix, str) and isinstance(continuation, str):
            first, both = (self.tokenizer.encode(text) for text in (prefix, prefix + continuation))
            return first, both[len(first) :]
        if isinstance(prefix, str) or isinstance(continuation, str):
            raise ArgumentError("request", expected="two texts, or two sequences of token ids",
                                found="one of each")  # fmt: skip
        return self.token_ids(prefix), self.token_ids(continuation)

    def _checked_ids(self, prompt: Prompt) -> list[int]:
        ids = self.token_ids(prompt)
        self._limit(ids, 0)
        return ids

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
            tokenizer = tokenizer.keeping_special
        ends |= self.end_tokens
        processor = asked.logits_processor
        if asked.constraint is not None:
            processor = self._forms(ends).holding(asked.constraint, processor)
        return Continuation(
            ids, self._limit(ids, asked.max_new_tokens), asked.sampling, end_tokens=ends,
            stops=stops or (), logprobs=asked.logprobs, top_logprobs=asked.top_logprobs,
            min_new_tokens=asked.min_new_tokens, processor=processor, on_text=on_text, lookup=asked.prompt_lookup,
            detokenizer=None if tokenizer is None else Detokenizer(tokenizer, ids),
        )  # fmt: skip

    def _forms(self, end_tokens: frozenset[int]) -> TokenForms:
        if end_tokens not in self._prepared:
            self._prepared[end_tokens] = TokenForms(self.tokenizer, self.config.vocab_size, end_tokens)  # fmt: skip
        return self._prepared[end_tokens]

    def _end_tokens(self, asked: Sequence[int | str]) -> frozenset[int]:
        found = set[int]()
        for each in asked:
            token = self.tokenizer.token_id(each) if isinstance(each, str) else index(each)
            if token is None or token >= self.config.vocab_size:
                raise ArgumentError("end_tokens", expected="tokens of the vocabulary", found=repr(each))  # fmt: skip
            found.add(token)
        return frozenset(found)

    def _limit(self, ids: Sequence[int], max_new_tokens: int | None) -> int:
        """How many tokens may follow a prompt, which is checked."""
        if not ids:
            raise GenerationError("the prompt has no tokens")
        left = self.config.max_positions - len(ids)
        default = self.defaults.max_new_tokens or DEFAULT_NEW_TOKENS
        limit = max(0, min(default, left)) if max_new_tokens is None else max_new_tokens
        self._check_ids(ids, limit)
        return limit

    def _check_tokens(self, token_ids: Tensor) -> None:
        """Of a matrix."""
        empty = token_ids.numel() == 0
        low, high = (0, 0) if empty else (int(token_ids.min()), int(token_ids.max()))
        self._check_range(token_ids.shape[1], 0, low, high)

    def _check_ids(self, ids: Sequence[int], new_tokens: int = 0) -> None:
        """Of integers of any size."""
        self._check_range(len(ids), new_tokens, min(ids, default=0), max(ids, default=0))

    def _check_range(self, length: int, new_tokens: int, low: int, high: int) -> None:
        self.check_files()
        if length + new_tokens > self.config.max_positions or length == 0:
            raise GenerationError(
                f"{length} prompt tokens and {new_tokens} new tokens do not fit the context",
                expected=f"1 to {self.config.max_positions} positions",
                found=length + new_tokens,
            )  # fmt: skip
        if low < 0 or high >= self.config.vocab_size:
            raise GenerationError(
                "token outside the vocabulary", expected=f"0..{self.config.vocab_size - 1}",
                found=low if low < 0 else high,
            )  # fmt: skip
