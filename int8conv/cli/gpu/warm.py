"""``int8conv warm``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ...runtime.dtypes import CACHE_BYTES
from ..output import echo, print_json, progress_bars

if TYPE_CHECKING:
    from ...runtime.backends.gpu.warm import Warmed


def _capability(text: str) -> int:
    """``9.0`` as one number."""
    major, point, minor = text.partition(".")
    if not (major.isdecimal() and point and len(minor) == 1 and minor.isdecimal()):
        raise click.BadParameter(f"{text!r} is not a compute capability such as 9.0")
    return 10 * int(major) + int(minor)


@click.command("warm")
@click.argument("path", type=click.Path())
@click.option("--device", help="cuda (PyTorch's current GPU) or cuda:N; default: cuda.")
@click.option(
    "--capability", type=_capability, metavar="N.N",
    help="Compile for a GPU of this compute capability, such as 9.0, which need not be there.",
)  # fmt: skip
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, default=[1], show_default=True, help="Largest number of sequences per step; repeatable.")  # fmt: skip
@click.option("--mode", type=click.Choice(["w8a8", "w8a16"]), help="As for generate.")
@click.option("--dtype", help="As for generate.")
@click.option("--kv-cache", type=click.Choice(list(CACHE_BYTES)), help="As for generate.")
@click.option("--outlier-fallback/--no-outlier-fallback", default=True, show_default=True, help="As for generate.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), help="Kernels to compile at a time; default: one per processor that this process may use.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    path: str, device: str | None, capability: int | None, as_json: bool, **options: Any  # checked by click
) -> None:  # fmt: skip
    """Compile the GPU kernels that PATH needs, so that its first run compiles none.

    PATH is a converted folder or a source, of which only headers are read, or a hub id of either (org/name or org/name@revision).
    What is compiled goes to Triton's cache (TRITON_CACHE_DIR), and serves every prompt and up to --batch sequences with the same
    options of generate, chat, serve or bench.
    """
    if device is not None and capability is not None:
        raise click.UsageError("give --device or --capability, not both")
    from ...runtime.devices import find_target

    target = find_target(device or "cuda", capability)
    from ...runtime.backends.gpu.warm import warm  # imports triton

    with progress_bars("kernel") as progress:
        warmed = warm(path, target, progress=progress, **options)
    if as_json:
        print_json(asdict(warmed))
    else:
        _show(warmed)


def _show(warmed: Warmed) -> None:
    echo(
        f"{warmed.kernels} kernels for compute capability {warmed.capability / 10}: {warmed.compiled} compiled, "
        f"{warmed.kernels - warmed.compiled} were in the cache, in {warmed.seconds:.1f} s; {warmed.folder}"
    )
