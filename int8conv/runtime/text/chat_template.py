"""Chat templates: from messages to the text that a model was trained to see.

A template is a Jinja program that comes with a checkpoint, from anyone: it runs in Jinja's immutable sandbox, which reaches no
file and changes no object. Variables, filters and functions are those that Hugging Face's documentation of chat templates
promises ("Writing a chat template").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...errors import JsonFileError, NotFoundError, TokenizerError
from ...formats.json_file import read_json

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
        try:
            self._template = _environment().from_string(source)
        except Exception as error:  # besides Jinja's own: RecursionError, OverflowError
            raise self._unusable(error) from error

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate:
        """From ``chat_template.jinja``, else ``chat_template`` of ``tokenizer_config.json``: one, or the default of several.

        Raises:
            TokenizerError: there is none, or it is no Jinja program.
            JsonFileError: the config, or its key, is malformed.
        """
        settings, file = _optional_json(folder / CONFIG_FILE), folder / TEMPLATE_FILE
        special = _special_tokens(_optional_json(folder / SPECIAL_FILE) | settings)
        try:
            return cls(file.read_text(encoding="utf-8"), special, file)
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"cannot be read: {error}", file=file) from error
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
        try:
            return self._template.render(
                messages=[dict(message) for message in messages], tools=None, documents=None,
                add_generation_prompt=add_generation_prompt, **self.special_tokens,
            )  # fmt: skip
        except Exception as error:  # a template may fail as any program: TypeError, MemoryError ...
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> TokenizerError:
        line = getattr(error, "lineno", None)
        text = " ".join(str(error).split()) or type(error).__name__
        where = "" if line is None else f" in line {line}"
        return TokenizerError(f"the chat template fails{where}: {text}", file=self._file)


class _Generation(Extension):
    """``{% generation %}...{% endgeneration %}`` marks what an assistant said, for training; here it is just text."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation],
    )  # fmt: skip
    environment.filters["tojson"] = _to_json  # Jinja's own escapes for HTML
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)  # fmt: skip


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message))


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


def _optional_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except NotFoundError:
        return {}
