"""Chat templates: from messages to the text format that a model was trained on.

A template is a Jinja program from an untrusted checkpoint: it runs in Jinja's immutable sandbox, without access to files or
mutable objects, in a separate process with limited time and memory (``template_process``). It has the variables, filters and
functions of Hugging Face's documentation ("Writing a chat template").
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...errors import JsonFileError, TokenizerError
from ...formats.int8.names import TEMPLATES_FOLDER
from ...formats.json_file import SETTINGS, read_bounded, read_optional_json
from .rendering import RENDERER, RenderingError
from .token_settings import CONFIG_FILE, read_token_settings

TEMPLATE_FILE: Final = "chat_template.jinja"
PROCESSOR_FILE: Final = "chat_template.json"
DEFAULT: Final = "default"
TOOL_USE: Final = "tool_use"

Message = Mapping[str, Any]
"""``role`` (in most templates system, user or assistant) and ``content``."""


class ChatTemplate:
    """A checkpoint's template, with the special tokens that it may refer to."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], file: Path, tool_use: str | None = None
    ) -> None:  # fmt: skip
        self.special_tokens = dict(special_tokens)
        """By name, such as ``eos_token``."""
        self._file = file
        self._source = source
        self._tool_use = tool_use
        self._render(None, source)

    @classmethod
    def load(cls, folder: Path, name: str = DEFAULT) -> ChatTemplate:
        """Load from ``chat_template.jinja`` and ``additional_chat_templates/``, otherwise ``chat_template`` in ``tokenizer_config.json``
        (one template, or several with names), otherwise ``chat_template.json``, which processors have.

        Args:
            folder: the checkpoint's folder.
            name: name of the template; with tools, ``tool_use`` is used instead of the default.

        Raises:
            TokenizerError: there is none, or it is not a Jinja template.
            JsonFileError: the config, or its key, is malformed.
        """
        settings = read_token_settings(folder)
        named, file = _from_files(folder, {name, DEFAULT, TOOL_USE}), folder / TEMPLATE_FILE
        if not named:
            file = folder / CONFIG_FILE
            named = _from_config(settings.values.get("chat_template"), file)
        if not named:
            file = folder / PROCESSOR_FILE
            named = _from_config(read_optional_json(file).get("chat_template"), file)
        if name not in named:
            raise TokenizerError(
                "no chat template in this folder" if not named else f"no chat template named '{name}'", file=folder,
                expected=" or ".join(sorted(named)) or f"{TEMPLATE_FILE}, or chat_template in {CONFIG_FILE}",
                hint=None if named else "a model that was not trained to chat can only continue text: use 'int8conv generate'",
            )  # fmt: skip
        tool_use = named.get(TOOL_USE) if name == DEFAULT else None
        return cls(named[name], settings.texts, file, tool_use)

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None, documents: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """Format a conversation; with ``add_generation_prompt``, up to where the assistant's reply begins.

        Args:
            messages: the messages so far.
            add_generation_prompt: whether a reply will follow.
            tools: JSON schemas of functions that the model may call.
            documents: documents to answer from, with ``title`` and ``text`` in most templates.
            arguments: other template variables, such as ``enable_thinking``; they take precedence over special tokens.

        Raises:
            TokenizerError: the template fails or refuses these messages.
        """
        variables = {
            "messages": [dict(message) for message in messages],
            "tools": [dict(tool) for tool in tools] if tools else None,
            "documents": [dict(document) for document in documents] if documents else None,
            "add_generation_prompt": add_generation_prompt, **self.special_tokens, **(arguments or {}),
        }  # fmt: skip
        source = self._tool_use if tools and self._tool_use is not None else self._source
        return self._render(variables, source)

    @property
    def source(self) -> str:
        """The template's text."""
        return self._source

    def names_token(self, token: str) -> bool:
        """Whether the template's source contains a token."""
        return token in self._source

    def _render(self, variables: Mapping[str, Any] | None, source: str) -> str:
        """None: compile only."""
        try:
            return RENDERER.render(source, variables)
        except RenderingError as error:
            where = "" if error.line is None else f" in line {error.line}"
            text = " ".join(str(error).split())
            raise TokenizerError(
                f"the chat template fails{where}: {text}", file=self._file
            ) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise TokenizerError(f"the messages are not JSON: {error}", file=self._file) from error


def is_in(folder: Path) -> bool:
    """Whether a folder has a chat template, of whatever quality."""
    if any(os.path.lexists(folder / name) for name in (TEMPLATE_FILE, PROCESSOR_FILE)):
        return True
    return read_optional_json(folder / CONFIG_FILE).get("chat_template") is not None


def _from_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    files = {name: folder / TEMPLATES_FOLDER / f"{name}.jinja" for name in names if "/" not in name}
    if os.path.lexists(folder / TEMPLATE_FILE):
        files[DEFAULT] = folder / TEMPLATE_FILE
    return {name: _read(file) for name, file in files.items() if os.path.lexists(file)}


def _read(file: Path) -> str:
    try:
        text = read_bounded(file, SETTINGS.nbytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"cannot be read: {error}", file=file) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _from_config(value: object, file: Path) -> dict[str, str]:
    """Templates by name: a single one is the default; several are an object, or a list of ``name`` and ``template``."""
    named = value
    if value is None:
        named = {}
    elif isinstance(value, str):
        named = {DEFAULT: value}
    elif isinstance(value, list) and all(isinstance(each, dict) for each in value):
        named = {each.get("name"): each.get("template") for each in value}
    if not isinstance(named, dict) or not all(
        isinstance(text, str) for pair in named.items() for text in pair
    ):
        raise JsonFileError(
            "key 'chat_template'", file=file, expected="a string, or templates with names",
            found=repr(value)[:60],
        )  # fmt: skip
    return named
