"""A model with a chat template, and servers of it on a port of this machine."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import int8conv
from int8conv.runtime.model import Model

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{{ tools[0].name if tools }}[assistant]"


@pytest.fixture(scope="package")
def model(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(example, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return int8conv.load(folder)


@contextmanager
def running(app: object) -> Iterator[str]:
    """The address of an ASGI application that is served."""
    import uvicorn

    from int8conv.cli.serve import listen

    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
