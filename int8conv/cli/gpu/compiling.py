"""A note while kernels are compiled for a GPU for the first time, for whoever waits."""

from __future__ import annotations

from importlib.util import find_spec

import click

from ...runtime.devices import device_kind
from ..output import notes


def note_compilations(device: str) -> None:
    """Say on stderr that kernels are being compiled, if that happens, and when the command ends how long it took; outside of a command, nothing.

    Raises:
        ArgumentError: ``device`` is neither a CPU nor a GPU.
    """
    context = click.get_current_context(silent=True)
    if device_kind(device) == "cpu" or find_spec("triton") is None or context is None:
        return
    from ...runtime.backends.gpu.compiling import listening

    compilations = Compilations()
    context.call_on_close(compilations.sum_up)
    context.with_resource(listening(compilations.add))


class Compilations:
    """Counts those that were not in the cache."""

    def __init__(self) -> None:
        self._count = 0
        self._seconds = 0.0

    def add(self, name: str, seconds: float) -> None:
        """A kernel has been compiled, or found in the cache in 0 seconds."""
        if not seconds:
            return
        if not self._count:
            notes(["compiling kernels for this GPU; later runs reuse them, and 'int8conv warm' does it beforehand"])  # fmt: skip
        self._count += 1
        self._seconds += seconds

    def sum_up(self) -> None:
        """Say how long it took, if anything was compiled."""
        if self._count:
            notes([f"compiled {self._count} kernels in {self._seconds:.1f} s"])
