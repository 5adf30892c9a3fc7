"""Requests of OpenAI's interface, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from ..runtime.generate.constraint import Constraint
from ..runtime.generate.options import GenerateOptions
from ..runtime.prompts import Prompt

MOST_CHOICES: Final = 16
"""Of ``n``, and of prompts times ``n``."""
_OPTIONS: Final = (
    "temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip


class RequestError(Exception):
    """A request that cannot be served; its text is for the client.

    Args:
        status: of HTTP.
        param: the field that is wrong.
    """

    def __init__(self, text: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.param = param


@dataclass(frozen=True)
class Asked:
    """A request for text."""

    kind: Literal["chat", "text"]
    prompts: list[Prompt] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    n: int = 1
    stream: bool = False
    with_usage: bool = False
    """A stream ends with the numbers of tokens."""
    logprobs: int | None = None
    """So many of the most likely tokens with each; None: none, and not its own either."""
    echo: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the chat template."""
    options: GenerateOptions = field(default_factory=lambda: cast("GenerateOptions", {}))


def read_chat(body: Mapping[str, Any]) -> Asked:
    """The body of ``/v1/chat/completions``.

    Raises:
        RequestError: a field has a value that it cannot have, or asks for what there is not.
    """
    messages = _objects(body, "messages")
    if not messages:
        raise RequestError("messages: expected at least one", param="messages")
    count = _integer(body, "top_logprobs", 0, 20) or 0
    arguments = body.get("chat_template_kwargs") or {}
    if not isinstance(arguments, dict):
        raise RequestError("chat_template_kwargs: expected an object", param="chat_template_kwargs")
    most = (
        "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    )
    return Asked(
        "chat", messages=[_joined(each) for each in messages],
        tools=_objects(body, "tools") or None, logprobs=count if body.get("logprobs") else None,
        arguments=arguments, **_common(body, most),
    )  # fmt: skip


def read_completion(body: Mapping[str, Any]) -> Asked:
    """The body of ``/v1/completions``.

    Raises:
        RequestError: as ``read_chat``.
    """
    prompts = _prompts(body, "prompt")
    common = _common(body, "max_tokens")
    if common["n"] * len(prompts) > MOST_CHOICES:
        raise RequestError(
            f"prompt: expected at most {MOST_CHOICES} prompts times n", param="prompt"
        )
    return Asked(
        "text", prompts=prompts, logprobs=_integer(body, "logprobs", 0, 20),
        echo=_flag(body, "echo"), **common,
    )  # fmt: skip


def read_inputs(body: Mapping[str, Any]) -> list[Prompt]:
    """The texts of ``/v1/embeddings``.

    Raises:
        RequestError: as ``read_chat``.
    """
    return _prompts(body, "input")


def _common(body: Mapping[str, Any], most: str) -> dict[str, Any]:
    options = {name: body[name] for name in _OPTIONS if body.get(name) is not None}
    limit = _integer(body, most, 0, 1 << 30)
    if limit is not None:
        options["max_new_tokens"] = limit
    constraint = _constraint(body.get("response_format"))
    if constraint is not None:
        options["constraint"] = constraint
    if body.get("logit_bias"):
        options["logit_bias"] = _bias(body["logit_bias"])
    wanted = body.get("stream_options") or {}
    return {
        "n": _integer(body, "n", 1, MOST_CHOICES) or 1, "stream": _flag(body, "stream"), "options": options,
        "with_usage": isinstance(wanted, dict) and bool(wanted.get("include_usage")),
    }  # fmt: skip


def _bias(value: object) -> dict[int, object]:
    if not isinstance(value, dict) or not all(str(key).isdecimal() for key in value):
        raise RequestError("logit_bias: expected numbers by token id", param="logit_bias")
    return {int(key): amount for key, amount in value.items()}


def _constraint(wanted: object) -> Constraint | None:
    """The form that ``response_format`` asks for."""
    if wanted is None:
        return None
    asked = wanted if isinstance(wanted, dict) else {}
    kind, schema = asked.get("type"), None
    if kind == "text":
        return None
    if kind == "json_object":
        schema = {"type": "object"}
    elif kind == "json_schema" and isinstance(named := asked.get("json_schema"), dict):
        schema = named.get("schema")
    if not isinstance(schema, dict):
        raise RequestError(
            "response_format: expected text, json_object, or json_schema with a schema", param="response_format",
        )  # fmt: skip
    return Constraint.json_schema(schema)


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    """Parts of text as one; other parts are none of a text model's."""
    content = message.get("content")
    if not isinstance(message.get("role"), str):
        raise RequestError("messages: expected objects with a role", param="messages")
    if not isinstance(content, list):
        return message
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise RequestError("messages: expected parts of text", param="messages")
    return message | {"content": "".join(part["text"] for part in content)}


def _prompts(body: Mapping[str, Any], name: str) -> list[Prompt]:
    """One prompt, or a list of them."""
    given = body.get(name)
    prompts = [given] if isinstance(given, str) or _is_ids(given) else given
    if (
        not isinstance(prompts, list)
        or not prompts
        or not all(isinstance(p, str) or _is_ids(p) for p in prompts)
    ):
        raise RequestError(f"{name}: expected text, token ids, or a list of them", param=name)
    return prompts


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _objects(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = body.get(name) or []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise RequestError(f"{name}: expected a list of objects", param=name)
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name) or False
    if not isinstance(value, bool):
        raise RequestError(f"{name}: expected true or false", param=name)
    return value


def _integer(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None or (name == "logprobs" and value is False):
        return None
    if type(value) is not int or not least <= value <= most:
        raise RequestError(f"{name}: expected an integer, {least} to {most}", param=name)
    return value
