"""``int8conv serve``."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Final

import click

from .generating import load_model, loading_options
from .output import echo

_PATIENCE: Final = 5
"""Seconds for requests that are being answered when the server ends."""
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@click.command("serve")
@click.argument("path", type=click.Path())
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen at; 0: any that is free.",
)
@click.option(
    "--api-key",
    envvar="INT8CONV_API_KEY",
    help="Key that clients must send; default: $INT8CONV_API_KEY, else none.",
)
@click.option("--name", help="Name of the model for clients; default: PATH's last part.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Most tokens of a reply; default: the context."
)
@click.option(
    "--batch",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="Most replies generated together; the cache has memory for so many of the longest.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Most requests that wait.",
)
@click.option(
    "--max-body",
    type=click.IntRange(min=1),
    default=1 << 20,
    show_default=True,
    help="Most bytes of a request.",
)
@loading_options
def command(
    path: str, host: str, port: int, api_key: str | None, name: str | None, max_tokens: int | None, batch: int, max_waiting: int,
    max_body: int, **options: Any,  # checked by click
) -> None:  # fmt: skip
    """Serve PATH (a converted folder, or a source in its own precision) with OpenAI's interface, to this machine alone unless
    --host says otherwise: models, completions, chat completions, embeddings, and /health. At / is a chat page for a browser.

    Requests are answered in their order, up to --batch of them together. PATH may be a hub id, org/name or org/name@revision, which is downloaded.
    """
    from ..errors import ArgumentError

    try:
        import uvicorn

        from ..serve.app import Limits, Server
    except ImportError as error:
        raise ArgumentError("serve", expected="starlette and uvicorn", found=error.name, hint="pip install 'int8conv[serve]'") from error  # fmt: skip
    model = load_model(path, options)
    _ = model.tokenizer  # a folder without one is refused now
    limits = Limits(max_body, max_waiting, max_tokens, batch)
    hosts = _LOOPBACK if host in _LOOPBACK else ()
    server = Server(model, name or Path(path).resolve().name, key=api_key, limits=limits, hosts=hosts)  # fmt: skip
    listening = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    echo(f"int8conv: serving {path} at {address}/v1, chat page at {address}/", err=True)
    config = uvicorn.Config(server.app, log_level="warning", timeout_graceful_shutdown=_PATIENCE)
    uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket there.

    Raises:
        OutputError: the address is in use, or none of this machine's.
    """
    from ..errors import OutputError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise OutputError(f"cannot listen at {host}:{port}: {error.strerror}", hint="--host or --port") from error  # fmt: skip
    return made
