"""The process in which chat templates run: Jinja's immutable sandbox, with limited time and memory.

A template is a program from an untrusted checkpoint. The sandbox keeps it from files and objects; only a separate process can
limit its time and memory: ``{{ 'a' * 10**10 }}`` is one operation, and is already evaluated at compile time.

Requests and replies are lines of JSON on stdin and stdout: ``{"source": ..., "variables": {...}}``, without variables to compile
only; ``{"text": ...}`` or ``{"error": ..., "line": ...}``. ``rendering`` is the counterpart.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS: Final = 2
"""Processor time per request; a template takes a few milliseconds."""
ADDRESSES: Final = 256 << 20
"""Bytes of address space, of which the interpreter takes about 40 MB."""
MOST_TEXT: Final = 16 << 20
"""Largest number of characters of a prompt, far more than any context."""


def main() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    environment = _environment()
    for limit, value in (
        (resource.RLIMIT_AS, ADDRESSES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))

    @lru_cache(maxsize=4)
    def compiled(source: str) -> Template:
        return environment.from_string(source)

    for line in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))  # then SIGXCPU
        sys.stdout.buffer.write(_reply(compiled, json.loads(line)))
        sys.stdout.buffer.flush()


def _reply(compiled: Any, request: dict[str, Any]) -> bytes:
    try:
        template, variables = compiled(request["source"]), request.get("variables")
        text = "" if variables is None else _rendered(template, variables)
        answer: dict[str, Any] = {"text": text}
    except MemoryError:
        answer = {"error": f"it needs more than {ADDRESSES >> 20} MiB of memory"}
    except (
        Exception
    ) as error:  # a template may fail like any program: TypeError, RecursionError ...
        answer = {"error": str(error)[:2000] or type(error).__name__}
        answer["line"] = getattr(error, "lineno", None)
    return json.dumps(answer).encode() + b"\n"


def _rendered(template: Template, variables: dict[str, Any]) -> str:
    parts, length = [], 0
    for part in template.generate(variables):
        parts.append(part)
        length += len(part)
        if length > MOST_TEXT:
            raise ValueError(f"its text is longer than {MOST_TEXT:,} characters")
    text = "".join(parts)
    text.encode()  # a lone surrogate is not valid text
    return text


class _Generation(Extension):
    """``{% generation %}...{% endgeneration %}`` marks assistant output for training; here it is plain text."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation],
    )  # fmt: skip
    environment.filters["tojson"] = _to_json  # Jinja's own filter escapes HTML
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
