"""What the worker does for a request: pieces of text, then what was generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from ..runtime.generate.batch import Batch
from ..runtime.generate.generation import Generation
from ..runtime.generate.options import GenerateOptions, following_seed
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
    tokens: Generation | None = None
    """If log-probabilities were asked for: the tokens since the last piece, with theirs."""


class _Choice:
    """One text of a reply on its way."""

    def __init__(self, model: Model, ids: list[int], options: GenerateOptions) -> None:
        self._pieces: list[str] = []
        self._taken = 0
        self.continuation = model.continuation(ids, on_text=self._pieces.append, **options)

    def take_text(self) -> str:
        """What has come since it was asked last."""
        text = "".join(self._pieces)
        self._pieces.clear()
        return text

    def take_tokens(self) -> Generation | None:
        """Those since it was asked last, with their log-probabilities."""
        found, start = self.continuation.result(), self._taken
        self._taken = len(found.token_ids)
        if found.logprobs is None or self._taken == start:
            return None
        top = found.top_logprobs and found.top_logprobs[start:]
        return replace(
            found,
            token_ids=found.token_ids[start:],
            logprobs=found.logprobs[start:],
            top_logprobs=top,
        )


class Generating:
    """Requests to a model, computed together; beginnings are not computed again where they are those of an earlier one."""

    def __init__(self, model: Model, batch: Batch, default_tokens: int, most_tokens: int | None) -> None:  # fmt: skip
        """``default_tokens``: of a reply, where a request says nothing; ``most_tokens``: whatever it says."""
        self._model, self._batch = model, batch
        self._default, self._most = default_tokens, most_tokens

    def work(self, asked: Asked) -> Callable[[], Iterator[list[Piece]]]:
        """For a ``Job``; empty pieces come first, once nothing can be wrong any more."""
        return lambda: self._pieces(asked)

    def _pieces(self, asked: Asked) -> Iterator[list[Piece]]:
        choices = self._choices(asked)
        members = [self._batch.add(each.continuation) for each in choices]
        try:
            yield [Piece(i, "") for i in range(len(choices))]
            going = dict(enumerate(zip(choices, members, strict=True)))
            while going:
                found = []
                for i, (choice, member) in list(going.items()):
                    if member.error is not None:
                        raise member.error
                    text, tokens, end = choice.take_text(), None, None
                    if asked.logprobs is not None and asked.stream:
                        tokens = choice.take_tokens()
                    if member.ended:
                        end = choice.continuation.result()
                        del going[i]
                    if text or tokens is not None or end is not None:
                        found.append(Piece(i, text, end, tokens))
                yield found
        finally:
            for member in members:
                self._batch.remove(member)

    def _choices(self, asked: Asked) -> list[_Choice]:
        options = asked.options
        if asked.kind == "chat":
            prompts: list[Prompt] = [self._chat_prompt(asked)]
            options = {**options, "end_tokens": self._chat_ends}
        else:
            prompts = asked.prompts
        if asked.logprobs is not None:
            options = {**options, "logprobs": True, "top_logprobs": asked.logprobs}
        found: list[_Choice] = []
        for prompt in prompts:
            ids = self._model.token_ids(prompt)
            for _ in range(asked.n):
                found.append(
                    _Choice(self._model, ids, self._limited(options, len(ids), len(found)))
                )
        return found

    def _limited(self, options: GenerateOptions, length: int, choice: int) -> GenerateOptions:
        left = max(1, self._model.config.max_positions - length)
        asked = options.get("max_new_tokens")
        limit = min(self._default, left) if asked is None else asked
        limit = limit if self._most is None else min(limit, self._most)
        seed = options.get("seed")
        changed: GenerateOptions = {**options, "max_new_tokens": limit}
        if choice and type(seed) is int and -(2**63) <= seed < 2**63:  # else it is refused
            changed["seed"] = following_seed(seed, choice)
        return changed

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
