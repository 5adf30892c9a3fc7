"""The chat page: what is sent, and what a browser makes of it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from int8conv.runtime.model import Model

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.testclient import TestClient

from int8conv.serve.app import Server

from ..docs.site import CHROMIUM
from .browser import Driver
from .conftest import running


def test_the_page_asks_nothing_of_any_other_host(model: Model) -> None:
    client = TestClient(Server(model, "small", key="secret").app)
    for path, kind in (("/", "text/html"), ("/chat.css", "text/css"), ("/chat.js", "text/javascript")):  # fmt: skip
        found = client.get(path)  # without the key, which the page asks for
        assert found.status_code == 200
        assert found.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in found.headers["content-security-policy"]
        assert not re.search(r"https?://|[\"'(]//", found.text)
    assert client.post("/").status_code == 405


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_conversation_in_a_browser(model: Model, tmp_path: Path) -> None:
    server = Server(model, "small")
    driver = Driver(server)
    prompt = model.tokenizer.encode("[user] A list\n[assistant]", special=False)
    expected = model.generate(prompt, max_new_tokens=12)
    backgrounds = set()
    with running(server.app) as address:
        for dark in (False, True):
            seen = driver.drive(address, tmp_path / f"profile-{dark}", dark=dark)
            assert (seen["errors"], seen["blocked"]) == ([], [])
            backgrounds.add(seen["background"])
    assert seen["title"] == "small"
    assert seen["articles_after_shift"] == 0
    assert seen["reply"] == seen["copied"] == expected.text
    growing = seen["growing"]
    assert len(growing) > 2
    assert all(b.startswith(a) for a, b in pairwise(growing))
    assert "12 tokens, cut off: no more tokens" in seen["words"]
    assert seen["stopped"].endswith("stopped")
    assert "max_tokens" in seen["error"]
    assert seen["kept"] == "Again"
    assert (seen["images"], seen["shown"]) == (0, "<img src=x onerror=alert(1)>")
    assert not seen["wide"]  # on a screen of 320 pixels
    assert (seen["unlabelled"], seen["left"]) == (0, 0)
    assert backgrounds == {"rgb(255, 255, 255)", "rgb(22, 24, 28)"}
