"""Chat templates: from messages to the text that a model was trained to see.

A template is a Jinja program that comes with a checkpoint, from anyone: it runs in Jinja's immutable sandbox, which reaches no
file and changes no object, in a process of its own with little time and memory (``template_process``). Variables, filters and functions are those that Hugging Face's documentation of chat templates
promises ("Writing a chat template").
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...errors import JsonFileError, TokenizerError
from ...formats.json_file import SETTINGS, read_bounded, read_optional_json
from .rendering import RENDERER, RenderingError

TEMPLATE_FILE: Final = "chat_template.jinja"
CONFIG_FILE: Final = "tokenizer_config.json"
SPECIAL_FILE: Final = "special_tokens_map.json"

Message = Mapping[str, Any]
"""``role`` (system, user or assistant, to most templates) and ``content``."""


class ChatTemplate:
    """A checkpoint's template, with the special tokens that it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], file: Path) -> None:
        self.special_tokens = dict(special_tokens)
        """Such as ``eos_token``."""
        self._file = file
        self.source = source
        self._render(None)

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate:
        """From ``chat_template.jinja``, else ``chat_template`` of ``tokenizer_config.json``: one, or the default of several.

        Raises:
            TokenizerError: there is none, or it is no Jinja program.
            JsonFileError: the config, or its key, is malformed.
        """
        settings, file = read_optional_json(folder / CONFIG_FILE), folder / TEMPLATE_FILE
        special = _special_tokens(read_optional_json(folder / SPECIAL_FILE) | settings)
        if os.path.lexists(file):
            try:
                text = read_bounded(file, SETTINGS.nbytes).decode("utf-8")
            except UnicodeDecodeError as error:
                raise TokenizerError(f"cannot be read: {error}", file=file) from error
            return cls(text.replace("\r\n", "\n").replace("\r", "\n"), special, file)
        source = _from_config(settings.get("chat_template"), folder / CONFIG_FILE)
        if source is None:
            raise TokenizerError(
                "no chat template in this folder", file=folder,
                expected=f"{TEMPLATE_FILE}, or chat_template in {CONFIG_FILE}",
                hint="a model that was not trained to chat only continues text: 'int8conv generate'",
            )  # fmt: skip
        return cls(source, special, folder / CONFIG_FILE)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation; with ``add_generation_prompt`` up to where the assistant's reply begins.

        Raises:
            TokenizerError: the template fails, or refuses these messages.
        """
        return self._render(
            {
                "messages": [dict(message) for message in messages], "tools": None, "documents": None,
                "add_generation_prompt": add_generation_prompt, **self.special_tokens,
            }
        )  # fmt: skip

    def _render(self, variables: Mapping[str, Any] | None) -> str:
        """None: compile only."""
        try:
            return RENDERER.render(self.source, variables)
        except RenderingError as error:
            where = "" if error.line is None else f" in line {error.line}"
            text = " ".join(str(error).split())
            raise TokenizerError(
                f"the chat template fails{where}: {text}", file=self._file
            ) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise TokenizerError(f"the messages are not JSON: {error}", file=self._file) from error


def _from_config(value: object, file: Path) -> str | None:
    if value is None or isinstance(value, str):
        return value
    named = {}
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        named = {each.get("name"): each.get("template") for each in value}
    if not isinstance(named.get("default"), str):
        raise JsonFileError(
            "key 'chat_template'", file=file,
            expected="a string, or a list of templates with one named default", found=repr(value)[:60],
        )  # fmt: skip
    return str(named["default"])


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Those with a name of their own, from strings or objects with ``content``."""
    tokens = {}
    for key, value in settings.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            tokens[key] = content
    return tokens
