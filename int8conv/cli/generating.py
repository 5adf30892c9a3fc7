"""What ``generate`` and ``chat`` share: options, loading, text from files and stdin."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from .output import echo, notes

if TYPE_CHECKING:
    from ..runtime.model import Model

_Command = TypeVar("_Command", bound=Callable[..., Any])

_SAMPLING: Final = (
    click.option("--max-new-tokens", "-n", type=click.IntRange(min=0), help="Default: 128."),
    click.option("--temperature", "-t", type=float, help="0: the most likely token each time."),
    click.option("--top-k", type=int, help="Draw from the k most likely tokens; 0: from all."),
    click.option("--top-p", type=float, help="Draw from the fewest tokens of this probability."),
    click.option("--min-p", type=float, help="Draw from tokens this likely in parts of the likeliest."),
    click.option("--repetition-penalty", type=float, help="Above 1: what has occurred becomes less likely."),
    click.option("--stop", multiple=True, help="Text to end at, not printed; may be repeated."),
    click.option("--seed", type=int, help="Makes drawing repeatable."),
)  # fmt: skip
_LOADING: Final = (
    click.option(
        "--mode", type=click.Choice(["w8a8", "w8a16"]),
        help="8- or 16-bit activations; default: by the number of tokens.",
    ),
    click.option("--dtype", help="float32, float16 or bfloat16; default: float32 on a CPU, on a GPU the checkpoint's 16 bits."),
    click.option(
        "--kv-cache", type=click.Choice(["float32", "float16", "bfloat16", "int8"]),
        help="What keys and values are kept in; default: --dtype.",
    ),
    click.option("--device", default="cpu", show_default=True, help="cpu, or cuda: PyTorch's current GPU."),
    click.option("--outlier-fallback/--no-outlier-fallback", default=True, show_default=True, help="The outlier fallback of W8A8."),
    click.option("--verbose", "-v", is_flag=True, help="On stderr: how fast the weights were loaded."),
)  # fmt: skip
_COMPILING: Final = "int8conv: note: compiling for this processor; later runs find it done"
_LOADING_NAMES: Final = ("mode", "dtype", "kv_cache", "device", "outlier_fallback")


def generation_options(command: _Command) -> _Command:
    """How tokens are drawn, and how the model is loaded."""
    for option in reversed((*_SAMPLING, *_LOADING)):
        command = option(command)
    return command


def load_model(path: str, options: dict[str, Any]) -> Model:
    """Load as ``options`` ask, which those of ``generate`` are left in; say what of the checkpoint's wishes is not followed."""
    import time

    from ..kernels.cpu import jit
    from ..runtime.loader import load

    started, verbose = time.perf_counter(), options.pop("verbose")
    if sys.stderr.isatty():
        jit.on_compile(lambda: echo(_COMPILING, err=True))
    model = load(path, **{name: options.pop(name) for name in _LOADING_NAMES})
    if verbose:
        echo(f"int8conv: {_loaded(model, time.perf_counter() - started)}", err=True)
    model.prepare()
    options["stop"] = list(options["stop"]) or None
    for unsupported in model.defaults.unsupported:
        notes([f"generation_config.json: {unsupported} is not followed"])
    return model


def _loaded(model: Model, seconds: float) -> str:
    """How a model came into memory."""
    from .output import size

    text = f"loaded in {seconds:.2f} s"
    if model.loading is None:
        return text
    moved = model.loading
    return f"{text}: {size(moved.nbytes)} to the GPU in {moved.seconds:.2f} s, {size(moved.speed)}/s"  # fmt: skip


def read_text(path: str) -> str:
    """A file's text, or that of stdin if the path is ``-``, without one line break at its end.

    Raises:
        NotFoundError: it cannot be read.
        GenerationError: it is not UTF-8.
    """
    from ..errors import NotFoundError

    where = "stdin" if path == "-" else path
    if path == "-" and sys.stdin is None:
        raise NotFoundError("cannot be read: it is closed", file=where)
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", file=where) from error
    text = check_text(data.decode("utf-8", "surrogateescape"), where)
    return text.removesuffix("\n").removesuffix("\r")


def check_text(text: str, where: str) -> str:
    """Bytes that are not UTF-8 come, from the shell or from ``read_text``, as lone surrogates.

    Raises:
        GenerationError: there are some.
    """
    from ..errors import GenerationError

    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise GenerationError(f"{where} is not UTF-8 text") from error
    return text
