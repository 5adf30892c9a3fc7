"""The process that renders templates: one for all, another where it ended, and no answer for a question that was not asked."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from int8conv.runtime.text import rendering, template_process
from int8conv.runtime.text.rendering import RENDERER, Renderer, RenderingError


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    made = Renderer()
    yield made
    made.close()


def pid(renderer: Renderer) -> int:
    assert renderer._process is not None
    return renderer._process.pid


def test_one_process_serves_all_templates_until_it_ends(renderer: Renderer) -> None:
    """A template that fails does not end it. Who closes a renderer may use it again."""
    assert renderer._process is None
    assert renderer.render("{{ a }}", {"a": "ä\u202e\n"}) == "ä\u202e\n"
    first = pid(renderer)
    assert renderer.render("{{ a }}{{ a }}", {"a": 1}) == "11"
    with pytest.raises(RenderingError) as caught:
        renderer.render("\n{% if %}")
    assert caught.value.line == 2
    with pytest.raises(RenderingError, match="division by zero") as caught:
        renderer.render("{{ 1 / 0 }}", {})
    assert caught.value.line is None
    assert renderer.render("{{ 1 / 0 }}") == ""  # only compiled
    assert pid(renderer) == first
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert renderer.render("{{ a }}", {"a": 2}) == "2"
    second = pid(renderer)
    assert second != first
    renderer.close()
    renderer.close()
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)
    assert renderer.render("again") == ""


def test_what_is_no_json_is_not_asked(renderer: Renderer) -> None:
    for variables, error in (({"a": object()}, TypeError), ({"a": float}, TypeError)):
        with pytest.raises(error):
            renderer.render("{{ a }}", variables)
    assert renderer._process is None


def test_an_answer_that_nobody_waited_for_is_not_the_next_one(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(rendering, "_read_line", interrupted)
        renderer.render("{{ a }}", {"a": "old"})
    assert renderer._process is None
    assert renderer.render("{{ a }}", {"a": "new"}) == "new"


def test_a_process_that_never_answers(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "WALL_SECONDS", 0.0)
    with pytest.raises(RenderingError, match="takes more than 0 s"):
        renderer.render("{{ a }}", {"a": 1})
    assert renderer._process is None


def test_threads_wait_for_each_other(renderer: Renderer) -> None:
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        found[n] = renderer.render("{{ n }}", {"n": n})

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: str(n) for n in range(8)}


def test_the_process_of_a_parent_is_left_alone(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """After a fork: neither used nor ended."""
    renderer.render("x")
    first = renderer._process
    assert first is not None
    here = os.getpid()
    try:
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: here + 1)
            renderer.close()
            renderer._process = first
            assert renderer.render("{{ 1 }}", {}) == "1"
            assert renderer._process is not first
            renderer.close()
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


def test_replies_end_with_their_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """In however many parts they come; a reply without an end is cut off."""

    def read(*parts: bytes, deadline: float = float("inf")) -> bytes:
        out, into = os.pipe()
        with open(out, "rb") as stream:
            for part in parts:
                os.write(into, part)
            os.close(into)
            return rendering._read_line(stream, min(deadline, rendering.time.monotonic() + 60))

    assert read(b"a", b"b\n") == b"ab\n"
    assert read(b"a") == b"a"  # it ended
    assert read() == b""
    monkeypatch.setattr(rendering, "_MOST_BYTES", 1 << 17)
    endless = os.open("/dev/zero", os.O_RDONLY)
    with open(endless, "rb") as stream:
        reply = rendering._read_line(stream, rendering.time.monotonic() + 60)
    assert 1 << 17 < len(reply) <= (1 << 17) + (1 << 16)
    out, into = os.pipe()  # nobody writes
    with open(out, "rb") as stream:
        assert rendering._read_line(stream, rendering.time.monotonic() - 1) == b""
    os.close(into)


@pytest.mark.parametrize(
    ("code", "words"),
    [(-signal.SIGXCPU, "2 s of processor time"), (-signal.SIGSEGV, "nests too deeply"), (1, "too much memory"), (None, "takes more than 120 s")],
)  # fmt: skip
def test_why_there_is_no_answer(code: int | None, words: str) -> None:
    def wait(timeout: float) -> int:
        if code is None:
            raise subprocess.TimeoutExpired("x", timeout)
        return code

    process: Any = SimpleNamespace(wait=wait)
    assert words in rendering._why(process)


def test_the_package_is_found_where_it_is_and_the_working_folder_is_not_searched(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It may have been imported from there, or by a relative path."""
    (tmp_path / "jinja2.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    others = [entry for entry in sys.path if not (Path(entry) / "int8conv").is_dir()]
    monkeypatch.setattr(sys, "path", ["", ".", *others])
    assert renderer.render("{{ 6 * 7 }}", {}) == "42"


def test_the_process_is_small() -> None:
    RENDERER.render("{{ a }}", {"a": 1})
    process = RENDERER._process
    assert process is not None
    if sys.platform == "linux":
        limits = resource.prlimit(process.pid, resource.RLIMIT_AS)
        assert limits == (template_process.ADDRESSES,) * 2
        assert resource.prlimit(process.pid, resource.RLIMIT_FSIZE) == (0, 0)
        assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0)


def test_a_process_that_has_ended_leaves_no_renderer_behind() -> None:
    code = "from int8conv.runtime.text.rendering import RENDERER; RENDERER.render('{{ 1 }}', {}); print(RENDERER._process.pid)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
