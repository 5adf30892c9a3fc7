"""The documentation site as a test sees it: built once, read as HTML, and served to a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

VOID: Final = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}  # fmt: skip
LOADED: Final = {
    "img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "link": "href",
}  # fmt: skip
"""Attributes whose address a browser asks for by itself."""


@dataclass
class HtmlPage(HTMLParser):
    """What a page links to, loads and holds."""

    path: Path
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    text: str = ""
    unclosed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.anchors |= {str(values[key]) for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        if tag in LOADED and values.get(LOADED[tag]) and values.get("rel") != "canonical":
            self.loaded.append(str(values[LOADED[tag]]))
        if tag not in VOID:
            self.unclosed.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.unclosed:
            while self.unclosed.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.unclosed):
            self.text += data


LOOK: Final = """
<!doctype html><title>looking</title><body><script>
async function look(path) {
  const frame = document.createElement("iframe");
  frame.width = 1300; frame.height = 900; frame.src = path;
  const loaded = new Promise(resolve => frame.onload = resolve);
  document.body.append(frame);
  await loaded;
  const page = frame.contentDocument, window_ = frame.contentWindow;
  const heading = page.querySelector("article h1"), header = page.querySelector(".md-header");
  const seen = {
    path, errors: window_.errors, title: page.title,
    heading: heading ? heading.innerText : "", height: heading ? heading.getBoundingClientRect().height : 0,
    styled: header ? window_.getComputedStyle(header).position : "",
    broken: [...page.images].filter(image => !image.naturalWidth).map(image => image.src),
    wide: page.documentElement.scrollWidth > page.documentElement.clientWidth,
    links: page.querySelectorAll(".md-nav--primary a").length,
  };
  frame.remove();
  return seen;
}
(async () => {
  const seen = [];
  for (const path of PATHS) seen.push(await look(path));
  await fetch("/seen", {method: "POST", body: JSON.stringify(seen)});
})();
</script>
"""
ERRORS: Final = (
    b"<head><script>window.errors = []; addEventListener('error', e => errors.push(String(e.message || e.target.src)), true);"
    b"addEventListener('unhandledrejection', e => errors.push(String(e.reason)));</script>"
)
POLICY: Final = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; report-uri /blocked"
"""What is asked of any other host is blocked, and told to us."""


class Handler(SimpleHTTPRequestHandler):
    """Serves the site; hears from the browser what it saw and what it was kept from."""

    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/look":
            paths = json.dumps(self.server.paths)
            self.answer(LOOK.replace("PATHS", paths).encode())
        elif path.endswith(".html"):
            html = (Path(self.directory) / path[1:]).read_bytes()
            self.answer(html.replace(b"<head>", ERRORS, 1))
        else:
            super().do_GET()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/blocked":
            self.server.blocked.append(body)
        else:
            self.server.seen = body
            self.server.done.set()
        self.answer(b"")

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """The site on a port of this machine."""

    def __init__(self, folder: Path, paths: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.paths = paths
        self.blocked: list[Any] = []
        self.seen: list[dict[str, Any]] = []
        self.done = threading.Event()

    @contextmanager
    def running(self) -> Iterator[str]:
        """Its address, while it serves."""
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{self.server_port}"
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


def look_at(site: Path, profile: Path, seconds: float) -> Server:
    """Show every page of a site to a browser; what it saw is in ``seen`` and ``blocked`` of the server."""
    paths = sorted("/" + page.relative_to(site).as_posix() for page in site.rglob("*.html"))
    server = Server(site, paths)
    assert CHROMIUM is not None
    with server.running() as address:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"{address}/look"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            server.done.wait(seconds)
        finally:
            browser.terminate()
            browser.wait()
    return server
