"""A conversation with a model: messages, the template that formats them, and a cache of the history."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from typing_extensions import Unpack

from ..errors import GenerationError, JsonFileError, NotWritableError
from ..formats.json_file import read_json
from .generate.generation import Generation
from .generate.options import GenerateOptions, OnText, read_options
from .generate.sampling import Sampling
from .generate.session import Session
from .generate.stream import Stream
from .model import Model
from .text.chat_template import ChatTemplate, Message
from .text.end_of_turn import end_of_turn_tokens

REPLY_TOKENS: Final = 1024
_LEAST_ROOM: Final = 16
"""Positions that a reply should have, if need be of those of the oldest turns."""


class Chat:
    """Turns of user and assistant. The history stays in the cache: a turn computes its own tokens only.

    Where the context is full, the oldest turns are left out of the prompt, the system message never.
    """

    def __init__(
        self, model: Model, sampling: Sampling | None = None, *, system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None, documents: Sequence[Mapping[str, Any]] | None = None,
        template_arguments: Mapping[str, Any] | None = None, template: str = "default",
        **options: Unpack[GenerateOptions],
    ) -> None:  # fmt: skip
        """
        Args:
            model: with a chat template in its folder.
            sampling: how tokens are chosen, as in ``Model.generate``.
            system: what the model is told before the first message.
            tools, documents: of the template: JSON schemas of functions, and texts to answer from.
            template_arguments: other variables of it, such as ``enable_thinking``.
            template: name of the template, where the folder has several.
            options: as in ``Model.generate``, for every reply; without ``max_new_tokens``, generation_config.json says, else it
                is 1024, and fewer where the context ends.

        Raises:
            ArgumentError: an option is out of range.
            TokenizerError: the chat template is missing or malformed.
        """
        self.model = model
        self.template = ChatTemplate.load(model.folder, template)
        self.messages: list[Message] = []
        """All messages so far, including replies."""
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self.dropped = 0
        """Of the oldest messages, how many the prompt has no room for any more."""
        self.session = Session(model.decoder)
        self.tools, self.documents, self.template_arguments = tools, documents, template_arguments
        self._limit = options.pop("max_new_tokens", None)
        self._sampling = sampling or model.sampling
        self._options = options
        self._ends = options.pop("end_tokens", ())
        checked: GenerateOptions = {
            **options,
            "max_new_tokens": self._limit,
            "end_tokens": self._ends,
        }
        self._asked_ends = read_options(self._sampling, checked).end_tokens

    @cached_property
    def end_tokens(self) -> tuple[int | str, ...]:
        """What ends a reply, beside the model's own: of the template, known by name, or asked for."""
        return (*self._asked_ends, *sorted(end_of_turn_tokens(self.template, self.model.tokenizer)))

    def say(self, text: str, *, on_text: OnText | None = None) -> Generation:
        """Send a user message and return the assistant's reply. On failure, the conversation is unchanged.

        Raises:
            GenerationError: the message alone does not fit the context.
            TokenizerError: the template fails or refuses these messages.
        """
        with self.stream(text) as reply:
            for piece in reply:
                if on_text is not None:
                    on_text(piece)
            self.accept(text, reply.result)
            return reply.result

    def stream(self, text: str) -> Stream:
        """A reply as it comes, which belongs to the conversation once it is given to ``accept``.

        Raises:
            GenerationError, TokenizerError: as ``say``.
        """
        ids = self.prompt(text)
        left = self.model.config.max_positions - len(ids)
        most = (
            self.model.defaults.max_new_tokens or REPLY_TOKENS
            if self._limit is None
            else self._limit
        )
        options: GenerateOptions = {
            **self._options,
            "max_new_tokens": min(most, max(1, left)),
            "end_tokens": self.end_tokens,
        }
        return self.model.stream(ids, self._sampling, session=self.session, **options)

    def prompt(self, text: str) -> list[int]:
        """What the model is given for a message of the user.

        Raises:
            GenerationError, TokenizerError: as ``say``.
        """
        return self._prompt([*self.messages, {"role": "user", "content": text}])

    def accept(self, text: str, reply: Generation) -> None:
        """Let a message and what was replied, be it the whole or not, be part of the conversation."""
        said: list[Message] = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": reply.text},
        ]
        self.messages += said

    def is_cut_by_context(self, reply: Generation) -> bool:
        """Whether a reply ended because the context did."""
        length = reply.prompt_tokens + len(reply.token_ids)
        return reply.finish_reason == "length" and length >= self.model.config.max_positions

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the messages, as JSON.

        Raises:
            NotWritableError: it cannot be written.
        """
        file = Path(path)
        data = json.dumps({"messages": self.messages}, indent=2, ensure_ascii=False) + "\n"
        part = file.with_name(f".{file.name}.partial")
        try:
            part.write_text(data, "utf-8")
            part.replace(file)
        except OSError as error:
            raise NotWritableError(f"cannot be written: {error.strerror}", file=file) from error

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on with messages that were saved, in place of these.

        Raises:
            NotFoundError, JsonFileError: no such file, or not one of messages.
        """
        messages = read_json(Path(path)).get("messages")
        if not isinstance(messages, list) or not all(
            isinstance(each, dict) and isinstance(each.get("role"), str) for each in messages
        ):
            raise JsonFileError("key 'messages'", file=path, expected="objects with role and content", found=repr(messages)[:60])  # fmt: skip
        self.messages, self.dropped = messages, 0

    def _prompt(self, messages: list[Message]) -> list[int]:
        """Token ids, of as many of the last turns as leave room for a reply.

        Turns are left out until a quarter of the context is free: what changes the beginning has all of it computed again.
        """
        most = self.model.config.max_positions
        room = min(_LEAST_ROOM if self._limit is None else self._limit, _LEAST_ROOM, most // 2)
        first = 1 if messages[0]["role"] in ("system", "developer") else 0
        ids = self._encode([*messages[:first], *messages[first + self.dropped :]])
        target = most
        while len(ids) + room > target:
            target = most - most // 4
            following = _next_user(messages, first + self.dropped + 1)
            if following is None:
                break
            self.dropped = following - first
            ids = self._encode([*messages[:first], *messages[following:]])
        if len(ids) + min(room, 1) > most:
            raise GenerationError(
                "the message, with what the template adds, does not fit the context",
                expected=f"less than {most} tokens", found=len(ids), hint="a shorter message",
            )  # fmt: skip
        return ids

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        text = self.template.render(
            messages, tools=self.tools, documents=self.documents, arguments=self.template_arguments
        )
        return self.model.tokenizer.encode(text, special=False)


def _next_user(messages: Sequence[Message], start: int) -> int | None:
    """Where the next turn begins."""
    return next((i for i in range(start, len(messages)) if messages[i]["role"] == "user"), None)
