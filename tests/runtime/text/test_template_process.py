"""What happens in the process of templates, in this one: requests and replies, and what Jinja is given beyond its own."""

from __future__ import annotations

import io
import json
import re
import resource
import signal
import sys
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import Template

from int8conv.runtime.text import template_process
from int8conv.runtime.text.template_process import main


def reply(source: str, **variables: Any) -> dict[str, Any]:
    return ask({"source": source, "variables": variables})


def ask(request: dict[str, Any]) -> dict[str, Any]:
    environment = template_process._environment()
    line = template_process._reply(environment.from_string, request)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    found: dict[str, Any] = json.loads(line)
    return found


def test_text_of_a_template() -> None:
    assert reply("{{ a }} größe\n{{ b[0].c }}", a="\u202e\n", b=[{"c": 1}]) == {"text": "\u202e\n größe\n1"}  # fmt: skip
    assert reply("{{ missing }}|{{ missing is defined }}") == {"text": "|False"}


def test_without_variables_it_is_only_compiled() -> None:
    assert ask({"source": "{{ 1 / 0 }}"}) == {"text": ""}
    assert ask({"source": "a\n{% if %}"})["line"] == 2


def test_blocks_leave_no_lines() -> None:
    """As transformers has it."""
    assert reply("{% if true %}\n  a\n  {% endif %}\nb") == {"text": "  a\nb"}


def test_json_is_not_escaped_for_html() -> None:
    value = {"b": "<'&größe", "a": [1, None, True]}
    assert reply("{{ x | tojson }}", x=value)["text"] == json.dumps(value, ensure_ascii=False)
    options = "indent=2, ensure_ascii=true, sort_keys=true"
    assert reply(f"{{{{ x | tojson({options}) }}}}", x=value)["text"] == json.dumps(value, indent=2, sort_keys=True)  # fmt: skip
    assert reply("{{ x | tojson(separators=(',', ':')) }}", x=[1, {"a": 2}])["text"] == '[1,{"a":2}]'  # fmt: skip


def test_loops_dates_and_marks_for_training() -> None:
    loop = "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert reply(loop) == {"text": "023"}
    assert reply("{{ strftime_now('%Y') }}")["text"] in {str(datetime.now().year + n) for n in (-1, 0)}  # fmt: skip
    marked = "{% for m in x %}{% generation %}{{ m }}{% if loop.last %}!{% endif %}{% endgeneration %}{% endfor %}"
    assert reply(marked, x=["a", "b"]) == {"text": "ab!"}
    assert reply("{% generation %}{% set a = 1 %}{% endgeneration %}{{ a }}") == {"text": ""}


def test_a_template_may_refuse() -> None:
    found = reply("{{ raise_exception('take turns') }}")
    assert found == {"error": "take turns", "line": None}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ x.append(1) }}", "unsafe|not safely callable"), ("{{ ''.__class__.__mro__ }}", "unsafe|no attribute"),
        ("{{ x[7].y }}", "no element 7|undefined"), ("{% include 'a' %}", "no loader"), ("{{ 'a' | nothing }}", "No filter"),
    ],
)  # fmt: skip
def test_the_sandbox(source: str, words: str) -> None:
    assert re.search(words, reply(source, x=[1])["error"])


def test_errors_are_short_and_have_a_text() -> None:
    def failing(error: BaseException) -> Any:
        def compiled(source: str) -> Template:
            raise error

        return compiled

    for error, text in (
        (ValueError("x" * 9999), "x" * 2000), (ValueError(), "ValueError"),
        (MemoryError(), "it needs more than 256 MiB of memory"),
    ):  # fmt: skip
        found = json.loads(template_process._reply(failing(error), {"source": ""}))
        assert found["error"] == text


def test_text_has_a_largest_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "MOST_TEXT", 10)
    assert reply("{{ 'a' * 10 }}") == {"text": "a" * 10}
    for source in ("{{ 'a' * 11 }}", "{% for i in range(99999) %}ab{% endfor %}"):
        assert reply(source)["error"] == "its text is longer than 10 characters"


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    assert "surrogates not allowed" in reply("{{ x }}", x="\ud800")["error"]


def test_requests_line_by_line_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the process, once; of processor time, from what it has had at each request on."""
    limits: list[tuple[int, tuple[int, int]]] = []
    used = iter([0.5, 7.25])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, value: limits.append((kind, value)))
    monkeypatch.setattr(
        resource, "getrusage", lambda _: SimpleNamespace(ru_utime=next(used), ru_stime=1.0)
    )
    ignored: list[tuple[Any, Any]] = []
    monkeypatch.setattr(signal, "signal", lambda *given: ignored.append(given))
    requests = [{"source": "{{ a }}", "variables": {"a": n}} for n in (1, 2)]
    out = io.BytesIO()
    lines = b"".join(json.dumps(each).encode() + b"\n" for each in requests)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    main()
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [{"text": "1"}, {"text": "2"}]  # fmt: skip
    assert ignored == [(signal.SIGINT, signal.SIG_IGN)]
    memory = 256 << 20
    assert limits[:3] == [
        (resource.RLIMIT_AS, (memory, memory)), (resource.RLIMIT_FSIZE, (0, 0)), (resource.RLIMIT_CORE, (0, 0)),
    ]  # fmt: skip
    seconds = [(resource.RLIMIT_CPU, (n, resource.RLIM_INFINITY)) for n in (1 + 1 + 2, 8 + 1 + 2)]
    assert limits[3:] == seconds
