"""What the worker does for a request: pieces of text, then what was generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from ..runtime.generate.generation import Generation
from ..runtime.generate.options import GenerateOptions
from ..runtime.generate.session import Session
from ..runtime.model import Model
from ..runtime.prompts import Prompt
from ..runtime.text.chat_template import ChatTemplate
from ..runtime.text.end_of_turn import end_of_turn_tokens
from .asking import Asked


@dataclass(frozen=True)
class Piece:
    """Text of a choice, which may be empty, or its end."""

    choice: int
    text: str
    end: Generation | None = None


class Generating:
    """Requests to a model, one at a time, whose beginnings are not computed again where they are those of the one before."""

    def __init__(self, model: Model, default_tokens: int, most_tokens: int | None) -> None:
        """``default_tokens``: of a reply, where a request says nothing; ``most_tokens``: whatever it says."""
        self._model = model
        self._session = Session(model.decoder)
        self._default, self._most = default_tokens, most_tokens

    def work(self, asked: Asked) -> Callable[[], Iterator[Piece]]:
        """For a ``Job``; an empty piece comes first, once nothing can be wrong any more."""
        return lambda: self._pieces(asked)

    def _pieces(self, asked: Asked) -> Iterator[Piece]:
        options = asked.options
        if asked.kind == "chat":
            prompts: list[Prompt] = [self._chat_prompt(asked)]
            options = {**options, "end_tokens": self._chat_ends}
        else:
            prompts = asked.prompts
        if asked.logprobs is not None:
            options = {**options, "logprobs": True, "top_logprobs": asked.logprobs}
        choice = 0
        for prompt in prompts:
            ids = self._model.token_ids(prompt)
            for _ in range(asked.n):
                yield from self._choice(choice, ids, self._limited(options, len(ids), choice))
                choice += 1

    def _choice(self, choice: int, ids: list[int], options: GenerateOptions) -> Iterator[Piece]:
        with self._model.stream(ids, session=self._session, **options) as stream:
            yield Piece(choice, "")
            while stream.step():
                yield Piece(choice, stream.take_text())
            yield Piece(choice, stream.take_text(), stream.result)

    def _limited(self, options: GenerateOptions, length: int, choice: int) -> GenerateOptions:
        left = max(1, self._model.config.max_positions - length)
        asked = options.get("max_new_tokens")
        limit = min(self._default, left) if asked is None else asked
        limit = limit if self._most is None else min(limit, self._most)
        seed = options.get("seed")
        changed: GenerateOptions = {**options, "max_new_tokens": limit}
        return (
            changed if seed is None or type(seed) is not int else {**changed, "seed": seed + choice}
        )

    def _chat_prompt(self, asked: Asked) -> list[int]:
        text = self._chat_template.render(
            asked.messages, tools=asked.tools, arguments=asked.arguments
        )
        return self._model.tokenizer.encode(text, special=False)

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        return ChatTemplate.load(self._model.folder)

    @cached_property
    def _chat_ends(self) -> list[int]:
        return sorted(end_of_turn_tokens(self._chat_template, self._model.tokenizer))
