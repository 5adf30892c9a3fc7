"""Memory that launches share: partial sums, and counters that are zero between launches.

Kernels of one stream run one after the other and may share a workspace; those of two streams may not. A CUDA graph keeps the addresses
it was captured with and may be replayed on any stream, so each captured step has a workspace of its own (``use``), which has to
exist before the capture: what is allocated within one belongs to the graph, and clearing it would be recorded, not done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import torch
from torch import Tensor

_FEWEST_SUMS: Final = 1 << 20
_FEWEST_COUNTERS: Final = 1 << 12


class Workspace:
    """float32 sums and int32 counters on one device, which grow as needed."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.counters: Tensor | None = None

    def take(self, device: torch.device, sums: int, counters: int) -> tuple[Tensor, Tensor]:
        """At least that many sums, uninitialized, and counters, all zero.

        Raises:
            RuntimeError: it would have to grow during a capture.
        """
        if self.sums is None or self.counters is None or len(self.sums) < sums or len(self.counters) < counters:  # fmt: skip
            if is_capturing(device):
                raise RuntimeError(
                    "a workspace has to be allocated before the capture that uses it"
                )
            self.sums = torch.empty(max(sums, _FEWEST_SUMS), dtype=torch.float32, device=device)
            self.counters = torch.zeros(max(counters, _FEWEST_COUNTERS), dtype=torch.int32, device=device)  # fmt: skip
        return self.sums, self.counters


_used: ContextVar[Workspace | None] = ContextVar("workspace", default=None)
of_streams: Final[dict[tuple[torch.device, int], Workspace]] = {}
"""Those of launches outside captured steps."""


@contextmanager
def use(workspace: Workspace) -> Iterator[None]:
    """Let launches within the block use this workspace."""
    token = _used.set(workspace)
    try:
        yield
    finally:
        _used.reset(token)


def take(device: torch.device, sums: int, counters: int) -> tuple[Tensor, Tensor]:
    """Sums and counters from the workspace in use, otherwise from that of the current stream.

    Raises:
        RuntimeError: a capture without a workspace of its own, or with one that is too small.
    """
    workspace = _used.get()
    if workspace is None:
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        workspace = of_streams.setdefault((device, stream), Workspace())
        if is_capturing(device):
            raise RuntimeError("a captured step needs a workspace of its own")
    return workspace.take(device, sums, counters)


def is_capturing(device: torch.device) -> bool:
    """Whether launches are recorded into a CUDA graph instead of being run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
