"""Whether there is memory for a cache, before it is taken and when it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...errors import GenerationError
from ...host import available_memory
from ..measure.footprint import Footprint


@contextmanager
def room(predicted: Callable[[], Footprint], *, on_host: bool) -> Iterator[None]:
    """Around the allocation of a cache; ``predicted``: what all of it takes.

    Raises:
        GenerationError: there is not so much memory.
    """
    free = available_memory() if on_host else None
    if free is not None and predicted().kv_cache > free:
        raise _too_large(predicted(), free)
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # PyTorch has no class for it on a CPU
        raise _too_large(predicted(), free) from error


def _too_large(size: Footprint, free: int | None) -> GenerationError:
    return GenerationError(
        f"no memory for a cache of {size.batch} x {size.context} positions",
        expected=None if free is None else f"at most the {free / 1e9:.1f} GB that are free",
        found=f"{size.kv_cache / 1e9:.1f} GB, {size.total / 1e9:.1f} GB with weights and activations",
        hint="fewer new tokens or prompts, or kv_cache int8",
    )  # fmt: skip
