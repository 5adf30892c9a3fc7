"""Shared by ``generate`` and ``chat``: options, loading, text from files and stdin."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ..runtime.dtypes import CACHE_BYTES
from .gpu.compiling import note_compilations
from .output import echo, notes
from .threads import threads_option

if TYPE_CHECKING:
    from ..runtime.model import Model

_Command = TypeVar("_Command", bound=Callable[..., Any])

_SAMPLING: Final = (
    click.option("--temperature", "-t", type=float, help="Sampling temperature; 0: greedy."),
    click.option("--top-k", type=int, help="Sample from the k most likely tokens; 0: from all tokens."),
    click.option("--top-p", type=float, help="Sample from the smallest set of most likely tokens with this total probability."),
    click.option("--min-p", type=float, help="Sample from tokens whose probability is at least this fraction of the highest one."),
    click.option("--repetition-penalty", type=float, help="Above 1: make tokens that have already occurred less likely."),
    click.option("--presence-penalty", type=float, help="Subtract this from the logits of tokens that have already been generated."),
    click.option("--frequency-penalty", type=float, help="The same, multiplied by the number of occurrences."),
    click.option("--logit-bias", multiple=True, metavar="TOKEN=NUMBER", help="Add NUMBER to the logit of the token with id TOKEN; repeatable."),
    click.option("--stop-token", multiple=True, help="Stop at this token, given by text or id; repeatable."),
    click.option("--min-new-tokens", type=click.IntRange(min=0), default=0, help="Ignore end tokens until this many tokens have been generated."),
    click.option("--special-tokens", is_flag=True, help="Also print special tokens."),
    click.option("--prompt-lookup", is_flag=True, help="Guess tokens from the text so far and check several at once: faster where it repeats itself, with the same result."),
    click.option("--stop", multiple=True, help="Stop before this text; repeatable."),
    click.option("--seed", type=int, help="Seed for sampling."),
)  # fmt: skip
_LOADING: Final = (
    click.option(
        "--mode", type=click.Choice(["w8a8", "w8a16"]),
        help="Activations in 8 or 16 bits; default: chosen by the number of tokens.",
    ),
    click.option("--dtype", help="Dtype of activations: float32, float16 or bfloat16; default: float32 on a CPU, the checkpoint's 16-bit dtype on a GPU."),
    click.option(
        "--kv-cache", type=click.Choice(list(CACHE_BYTES)),
        help="Dtype of the KV cache; default: --dtype.",
    ),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda (PyTorch's current GPU) or cuda:N."),
    click.option("--tokenizer", type=click.Path(), help="Folder with a tokenizer to use instead of PATH's."),
    threads_option,
    click.option("--outlier-fallback/--no-outlier-fallback", default=True, show_default=True, help="In W8A8 on a CPU, multiply outlier activations in 16 bits; a GPU only counts them."),
    click.option("--verbose", "-v", is_flag=True, help="Print loading time to stderr."),
)  # fmt: skip
_COMPILING: Final = "int8conv: note: compiling for this processor; later runs reuse the result"
_LOADING_NAMES: Final = ("mode", "dtype", "kv_cache", "device", "outlier_fallback", "tokenizer")
_TEMPLATE: Final = (
    click.option("--system", help="System message, sent before the first message."),
    click.option("--template-arg", multiple=True, metavar="NAME=VALUE", help="Variable of the chat template, such as enable_thinking=false; the value is JSON or text; repeatable."),
    click.option("--tools", type=click.Path(), help="JSON file with a list of functions for the chat template."),
    click.option("--documents", type=click.Path(), help="JSON file with a list of documents for the chat template."),
    click.option("--template", default="default", help="Name of the chat template, if there are several."),
)  # fmt: skip


def generation_options(new_tokens: int) -> Callable[[_Command], _Command]:
    """Options for the number of tokens (default: ``new_tokens``), sampling, and loading the model."""
    limit = click.option(
        "--max-new-tokens", "-n", type=click.IntRange(min=0), help=f"Default: {new_tokens}."
    )

    def decorate(command: _Command) -> _Command:
        for option in reversed((limit, *_SAMPLING, *_LOADING)):
            command = option(command)
        return command

    return decorate


def loading_options(command: _Command) -> _Command:
    """How a model is loaded."""
    for option in reversed(_LOADING):
        command = option(command)
    return command


def template_options(command: _Command) -> _Command:
    """Options for the chat template."""
    for option in reversed(_TEMPLATE):
        command = option(command)
    return command


def pop_template_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options as keyword arguments of ``Chat``.

    Raises:
        GenerationError: a text is not UTF-8.
        JsonFileError, NotFoundError: a file is unusable.
    """
    system = options.pop("system")
    return {
        "system": None if system is None else check_text(system, "the system message"),
        "template_arguments": dict(map(_pair, options.pop("template_arg"))),
        "tools": _read_list(options.pop("tools")), "documents": _read_list(options.pop("documents")),
        "template": options.pop("template"),
    }  # fmt: skip


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--template-arg")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _read_list(path: str | None) -> list[dict[str, Any]] | None:
    from ..errors import JsonFileError

    if path is None:
        return None
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise JsonFileError(f"not JSON: {error}", file=path) from error
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise JsonFileError("not JSON of the expected kind", file=path, expected="a list of objects", found=type(value).__name__)  # fmt: skip
    return value


def _bias(text: str) -> tuple[int, float]:
    token, _, amount = text.partition("=")
    try:
        return int(token), float(amount)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not TOKEN=NUMBER", param_hint="--logit-bias"
        ) from None


def load_model(path: str, options: dict[str, Any]) -> Model:
    """Load a model as ``options`` say, leaving only generation options in it; note settings that are not followed."""
    import time

    from ..kernels.cpu import jit
    from ..runtime.loader import load

    started, verbose = time.perf_counter(), options.pop("verbose")
    if sys.stderr.isatty():
        jit.on_compile(lambda: echo(_COMPILING, err=True))
    note_compilations(options["device"])
    model = load(path, **{name: options.pop(name) for name in _LOADING_NAMES})
    if verbose:
        echo(f"int8conv: {_loaded(model, time.perf_counter() - started)}", err=True)
    model.prepare()
    notes(jit.notes())
    for unsupported in model.defaults.unsupported:
        notes([f"generation_config.json: {unsupported} is not followed"])
    if "stop" not in options:  # no options of generation
        return model
    options["stop"] = list(options["stop"]) or None
    options["end_tokens"] = [int(t) if t.isdecimal() else t for t in options.pop("stop_token")]
    options["logit_bias"] = dict(map(_bias, options["logit_bias"])) or None
    return model


def _loaded(model: Model, seconds: float) -> str:
    """A line on how the model was loaded."""
    from .output import size

    text = f"loaded in {seconds:.2f} s"
    if model.loading is None:
        return text
    moved = model.loading
    return f"{text}: {size(moved.nbytes)} to the GPU in {moved.seconds:.2f} s, {size(moved.speed)}/s"  # fmt: skip


def read_text(path: str) -> str:
    """The text of a file, or of stdin if the path is ``-``, without a final line break.

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
    """Refuse text with lone surrogates, which is how non-UTF-8 bytes arrive from the shell and ``read_text``.

    Raises:
        GenerationError: it has some.
    """
    from ..errors import GenerationError

    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise GenerationError(f"{where} is not UTF-8 text") from error
    return text
