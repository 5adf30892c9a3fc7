"""A conversation with a model: messages, the template that formats them, and a cache of the history."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeGuard

from typing_extensions import Unpack

from ..errors import GenerationError, Int8convError, JsonFileError
from ..formats.json_file import read_json
from ..formats.outputs import OutputKind, write_output
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
"""Number of positions to leave for a reply, if necessary by dropping the oldest turns."""


class Chat:
    """A conversation of user and assistant. The history stays in the cache: each turn computes only its own tokens.

    When the context is full, the oldest turns are dropped from the prompt, but never the system message.
    """

    def __init__(
        self, model: Model, sampling: Sampling | None = None, *, system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None, documents: Sequence[Mapping[str, Any]] | None = None,
        template_arguments: Mapping[str, Any] | None = None, template: str = "default",
        **options: Unpack[GenerateOptions],
    ) -> None:  # fmt: skip
        """
        Args:
            model: a model with a chat template in its folder.
            sampling: how tokens are sampled, as in ``Model.generate``.
            system: system message, sent before the first message.
            tools, documents: for the template: JSON schemas of functions, and texts to answer from.
            template_arguments: other template variables, such as ``enable_thinking``.
            template: name of the template, if the folder has several.
            options: as in ``Model.generate``, for every reply; ``max_new_tokens`` defaults to generation_config.json, or 1024, or
                fewer if the context ends.

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
        """Number of oldest messages that no longer fit the prompt."""
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
        """Tokens that end a reply in addition to the model's own: from the template, known by name, or requested."""
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
        """A streamed reply, which becomes part of the conversation once it is passed to ``accept``.

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
        """The input of the model for a user message.

        Raises:
            GenerationError, TokenizerError: as ``say``.
        """
        return self._prompt([*self.messages, {"role": "user", "content": text}])

    def accept(self, text: str, reply: Generation) -> None:
        """Add a message and its (possibly partial) reply to the conversation."""
        said: list[Message] = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": reply.text},
        ]
        self.messages += said

    def is_cut_by_context(self, reply: Generation) -> bool:
        """Whether a reply ended at the end of the context."""
        length = reply.prompt_tokens + len(reply.token_ids)
        return reply.finish_reason == "length" and length >= self.model.config.max_positions

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the messages as JSON.

        Raises:
            OutputError: it cannot be written, or ``path`` is a file of another kind.
        """
        data = json.dumps({"messages": self.messages}, indent=2, ensure_ascii=False) + "\n"
        write_output(Path(path), data.encode(), CONVERSATION)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the messages by saved ones.

        Raises:
            NotFoundError, JsonFileError: the file does not exist, or does not contain messages.
        """
        messages = read_json(Path(path)).get("messages")
        if not _are_messages(messages):
            raise JsonFileError("key 'messages'", file=path, expected="objects with role and content", found=repr(messages)[:60])  # fmt: skip
        self.messages, self.dropped = messages, 0

    def _prompt(self, messages: list[Message]) -> list[int]:
        """Token ids of as many of the last turns as leave room for a reply.

        Turns are dropped until a quarter of the context is free, as changing the beginning requires recomputing everything.
        """
        most = self.model.config.max_positions
        room = min(_LEAST_ROOM if self._limit is None else self._limit, _LEAST_ROOM, most // 2)
        first = 1 if messages[0]["role"] in ("system", "developer") else 0
        ids = self._encode([*messages[:first], *messages[first + self.dropped :]])
        target, dropped = most, self.dropped
        while len(ids) + room > target:
            target = most - most // 4
            following = _next_user(messages, first + dropped + 1)
            if following is None:
                break
            dropped = following - first
            ids = self._encode([*messages[:first], *messages[following:]])
        if len(ids) + min(room, 1) > most:
            raise GenerationError(
                "the message, with what the template adds, does not fit the context",
                expected=f"less than {most} tokens", found=len(ids), hint="send a shorter message",
            )  # fmt: skip
        self.dropped = dropped
        return ids

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        text = self.template.render(
            messages, tools=self.tools, documents=self.documents, arguments=self.template_arguments
        )
        return self.model.tokenizer.encode(text, special=False)


def _are_messages(value: object) -> TypeGuard[list[Message]]:
    return isinstance(value, list) and all(
        isinstance(each, dict) and isinstance(each.get("role"), str) for each in value
    )


def _is_conversation(path: Path) -> bool:
    try:
        return _are_messages(read_json(path).get("messages"))
    except Int8convError:
        return False


CONVERSATION: Final = OutputKind("a saved conversation", _is_conversation)


def _next_user(messages: Sequence[Message], start: int) -> int | None:
    """Index of the next turn."""
    return next((i for i in range(start, len(messages)) if messages[i]["role"] == "user"), None)
