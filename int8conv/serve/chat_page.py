"""The chat page at ``/``: three files of this package, which ask nothing of any other host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FILES: Final = {"/": ("index.html", "text/html"), "/chat.css": ("chat.css", "text/css"), "/chat.js": ("chat.js", "text/javascript")}  # fmt: skip
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}  # fmt: skip


def page_routes() -> list[Route]:
    """Routes of the page and of what it loads."""
    return [Route(path, _sender(*file), methods=["GET"]) for path, file in _FILES.items()]


def _sender(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (resources.files(__package__) / "page" / name).read_bytes()

    async def send(_request: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return send
