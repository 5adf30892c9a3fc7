"""A browser without a screen at the chat page: a page of the tests shows it in a frame, uses it, and tells what it saw."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from int8conv.serve.app import Server

from ..docs.site import CHROMIUM, FLAGS

DRIVER: Final = """
<!doctype html><title>driver</title><body><script>
const seen = {errors: [], blocked: [], copied: null, growing: []};
addEventListener("error", e => seen.errors.push(String(e.message)));
const until = async (what, test) => {
  const began = Date.now();
  while (!test()) {
    if (Date.now() - began > 60000) throw new Error("waited for: " + what);
    await new Promise(next => setTimeout(next, 15));
  }
};
async function drive() {
  const frame = document.createElement("iframe");
  frame.width = 320; frame.height = 700; frame.src = "/";
  const loaded = new Promise(resolve => frame.onload = resolve);
  document.body.append(frame);
  await loaded;
  const win = frame.contentWindow, page = frame.contentDocument, $ = id => page.getElementById(id);
  win.addEventListener("error", e => seen.errors.push(String(e.message)));
  page.addEventListener("securitypolicyviolation", e => seen.blocked.push(e.blockedURI));
  const press = (target, key, more) => target.dispatchEvent(new win.KeyboardEvent("keydown", {key, bubbles: true, cancelable: true, ...more}));
  const last = role => [...page.querySelectorAll("article." + role)].pop();
  const said = () => last("assistant")?.querySelector("p").textContent ?? "";
  const ready = () => !$("send").hidden;
  await until("the model's name", () => page.title !== "int8conv");
  seen.title = page.title;
  seen.focused = page.activeElement === $("text") || page.hasFocus() === false;
  // a reply that streams
  $("tokens").value = 12;
  $("text").value = "A list";
  press($("text"), "Enter", {shiftKey: true});
  seen.articles_after_shift = page.querySelectorAll("article").length;
  press($("text"), "Enter");
  await until("a reply that begins", () => !$("stop").hidden);
  while (!ready()) {
    if (said() !== seen.growing.at(-1)) seen.growing.push(said());
    await new Promise(next => setTimeout(next, 1));
  }
  seen.reply = said();
  seen.words = last("assistant").querySelector("footer").textContent;
  // copy
  Object.defineProperty(win.navigator, "clipboard", {value: {writeText: async text => { seen.copied = text; }}});
  last("assistant").querySelector("button").click();
  await until("the copy", () => seen.copied !== null);
  // a second turn knows the first; stopped by the keyboard
  $("tokens").value = "";
  $("temperature").value = 1;
  $("text").value = "More";
  $("send").click();
  await until("some text", () => said().length > 5 && last("user").textContent === "More");
  press(page.body, "Escape");
  await until("the end", ready);
  seen.stopped = last("assistant").querySelector("footer").textContent;
  // an error keeps what was typed
  $("tokens").value = -1;
  $("text").value = "Again";
  $("send").click();
  await until("an error", () => last("error"));
  seen.error = last("error").textContent;
  seen.kept = $("text").value;
  // markup in a text stays text
  $("tokens").value = 1;
  $("mode").value = "complete";
  $("text").value = "<img src=x onerror=alert(1)>";
  $("send").click();
  await until("the end", ready);
  seen.images = page.images.length;
  seen.shown = last("user").textContent;
  page.querySelector("details").open = true;
  seen.wide = page.documentElement.scrollWidth > page.documentElement.clientWidth;
  seen.unlabelled = [...page.querySelectorAll("textarea, input, select")].filter(e => !e.labels.length && !e.ariaLabel).length;
  seen.background = win.getComputedStyle(page.body).backgroundColor;
  $("new").click();
  seen.left = page.querySelectorAll("article").length;
}
drive().catch(error => seen.errors.push(String(error))).finally(() => fetch("/driver/seen", {method: "POST", body: JSON.stringify(seen)}));
</script>
"""


class Driver:
    """Routes beside a server's own; what the browser saw is in ``seen``."""

    def __init__(self, server: Server) -> None:
        self.seen: dict[str, Any] = {}
        self.done = threading.Event()
        server.app.router.routes += [
            Route("/driver", lambda request: HTMLResponse(DRIVER)),
            Route("/driver/seen", self._hear, methods=["POST"]),
        ]

    async def _hear(self, request: Request) -> Response:
        self.seen = json.loads(await request.body())
        self.done.set()
        return Response()

    def drive(self, address: str, profile: Path, *, dark: bool, seconds: float = 300) -> dict[str, Any]:  # fmt: skip
        """Use the page in a browser; what it saw."""
        assert CHROMIUM is not None
        self.done.clear()
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        command = [CHROMIUM, *FLAGS, scheme, f"--user-data-dir={profile}", f"{address}/driver"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert self.done.wait(seconds), "the browser never answered"
        finally:
            browser.terminate()
            browser.wait()
        return self.seen
