"""The application: routes, limits, the key, and clients that go away."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..errors import Int8convError
from ..runtime.generate.generation import Generation
from ..runtime.model import Model
from .asking import Asked, RequestError, read_chat, read_completion, read_inputs
from .chat_page import page_routes
from .generating import Generating, Piece
from .replies import Reply, error
from .worker import Job, Worker

_SHUT: Final = "the server is full: too many requests wait"
_FAILED: Final = "the server failed at this request; its log says why"
_GONE: Final = 499
"""The status of what nobody will read, as nginx has it."""


@dataclass(frozen=True)
class Limits:
    """What clients may ask for."""

    body: int = 1 << 20
    """Bytes of a request."""
    waiting: int = 64
    """Requests that wait."""
    tokens: int | None = None
    """Of a reply."""
    batch: int = 8
    """Replies that are generated together; others wait."""


class Server:
    """A model with its routes; ``app`` is the ASGI application."""

    def __init__(
        self, model: Model, name: str, *, key: str | None = None, default_tokens: int = 1024, limits: Limits | None = None,
        hosts: Collection[str] = (),
    ) -> None:  # fmt: skip
        """``hosts``: names by which clients may call this machine; empty: any."""
        self._model, self._name, self._key = model, name, key
        self._limits = limits or Limits()
        self._hosts = hosts
        batch = model.batch(self._limits.batch)
        self._worker = Worker(self._limits.waiting, batch)
        self._generating = Generating(model, batch, default_tokens, self._limits.tokens)
        self._started = int(time.time())
        self.app = Starlette(
            routes=[
                *page_routes(),
                Route("/health", self._health),
                Route("/v1/models", self._guarded(self._models)),
                Route("/v1/completions", self._guarded(self._completion), methods=["POST"]),
                Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
                Route("/v1/embeddings", self._guarded(self._embeddings), methods=["POST"]),
            ],
            lifespan=self._lifespan, exception_handlers={HTTPException: _no_route, Exception: _broken},
        )  # fmt: skip

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self._worker.close)

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": self._worker.waiting})

    async def _models(self, _request: Request) -> Response:
        own = {
            "id": self._name,
            "object": "model",
            "created": self._started,
            "owned_by": "int8conv",
        }
        return JSONResponse({"object": "list", "data": [own]})

    async def _completion(self, request: Request) -> Response:
        return await self._text(request, read_completion(await self._body(request)))

    async def _chat(self, request: Request) -> Response:
        return await self._text(request, read_chat(await self._body(request)))

    async def _embeddings(self, request: Request) -> Response:
        inputs = read_inputs(await self._body(request))

        def work() -> Iterator[list[Any]]:
            for each in inputs:
                yield [(self._model.embed([each])[0].tolist(), len(self._model.token_ids(each)))]

        found = [each async for each in self._submitted(request, Job(work))]
        data = [
            {"object": "embedding", "index": i, "embedding": vector}
            for i, (vector, _) in enumerate(found)
        ]
        count = sum(length for _, length in found)
        used = {"prompt_tokens": count, "total_tokens": count}
        return JSONResponse({"object": "list", "data": data, "model": self._name, "usage": used})

    async def _text(self, request: Request, asked: Asked) -> Response:
        pieces = self._submitted(request, Job(self._generating.work(asked)))
        reply = Reply(asked.kind, self._name, self._model.tokenizer)
        if not asked.stream:
            ends = {p.choice: p.end async for p in pieces if p.end is not None}
            return JSONResponse(reply.whole(asked, [ends[i] for i in sorted(ends)]))
        first = await anext(pieces, None)  # an error before it has a status of its own
        if first is None:
            raise RequestError("the client has gone", _GONE)
        return StreamingResponse(
            _events(reply, asked, first, pieces), media_type="text/event-stream"
        )

    async def _submitted(self, request: Request, job: Job) -> AsyncIterator[Any]:
        """The results of a job, which ends with its client."""
        if not self._worker.submit(job):
            raise RequestError(_SHUT, 429)
        watch = asyncio.create_task(_gone(request, job))
        try:
            async for each in job.results():
                yield each
        finally:
            watch.cancel()
            job.cancel()

    async def _body(self, request: Request) -> dict[str, Any]:
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > self._limits.body:
                raise RequestError(f"the request has more than {self._limits.body:,} bytes", 413)
        try:
            body = json.loads(bytes(data))
        except (ValueError, RecursionError) as problem:
            raise RequestError(f"not JSON: {problem}") from problem
        if not isinstance(body, dict):
            raise RequestError("not JSON of the expected kind: expected an object")
        return body

    def _is_ours(self, request: Request) -> bool:
        """Whether no other web page can have made this request in a browser of this machine."""
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        try:
            if self._hosts and _host_of(host) not in self._hosts:  # a name that leads here
                return False
            return origin is None or urlsplit(origin).netloc == host
        except ValueError:  # a malformed one
            return False

    def _guarded(
        self, route: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """With the key asked for, and errors as JSON."""

        async def answer(request: Request) -> Response:
            if not self._is_ours(request):
                return JSONResponse(error("a request of another site, or for another host", "permission_error"), 403)  # fmt: skip
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if self._key is not None and not hmac.compare_digest(
                given.encode(), self._key.encode()
            ):
                return JSONResponse(error("a wrong or no API key", "authentication_error"), 401)
            try:
                return await route(request)
            except RequestError as problem:
                return JSONResponse(
                    error(str(problem), "invalid_request_error", problem.param), problem.status
                )
            except Int8convError as problem:
                return JSONResponse(error(str(problem), "invalid_request_error"), 400)

        return answer


def _host_of(address: str) -> str:
    """The host of ``host``, ``host:port`` or a URL."""
    return urlsplit(address if "//" in address else f"//{address}").hostname or ""


async def _no_route(_request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    shown = error(problem.detail, "invalid_request_error")
    return JSONResponse(shown, problem.status_code, problem.headers)


async def _broken(_request: Request, _problem: Exception) -> Response:
    return JSONResponse(error(_FAILED, "server_error"), 500)


async def _gone(request: Request, job: Job) -> None:
    """Cancel a job when its client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.cancel()


async def _events(
    reply: Reply, asked: Asked, first: Piece, pieces: AsyncIterator[Piece]
) -> AsyncIterator[str]:
    """Server-sent events: a part for each piece of text, and a last word."""
    ends, begun = dict[int, Generation](), set[int]()
    yield _event(reply.chunk(asked, first, first=True))
    begun.add(first.choice)
    try:
        async for piece in pieces:
            if piece.end is not None:
                ends[piece.choice] = piece.end
            is_first = piece.choice not in begun
            begun.add(piece.choice)
            yield _event(reply.chunk(asked, piece, first=is_first))
        if asked.with_usage:
            yield _event(reply.last(asked, [ends[i] for i in sorted(ends)]))
    except Int8convError as problem:
        yield _event(error(str(problem), "server_error"))
    except Exception:
        yield _event(error(_FAILED, "server_error"))
        raise
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
