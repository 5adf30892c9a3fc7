"""What every section is given: the device, the shapes, the copy's bandwidth, the time that is left."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

F16 = torch.float16
_Item = TypeVar("_Item")
Row = dict[str, Any]
"""A line of a section's table; ``skipped`` says why there is none."""


@dataclass
class Session:
    """One run of the benchmarks."""

    device: torch.device
    tiny: bool
    """Shapes that Triton's interpreter bears; times mean nothing."""
    deadline: float
    """By ``time.monotonic``; of everything."""
    scratch: Path = Path(tempfile.gettempdir())
    """Where files may be written."""
    compiling: bool = False
    """Everything is launched once, for Triton's cache; nothing is measured."""
    part: tuple[int, int] = (0, 1)
    """Which of how many parts of a section, if it is divided."""
    copy: float = 0.0
    """Bytes a second, read and written, of a copy on the device."""
    read: float = 0.0
    """Bytes a second that a sum over 1 GiB reads."""
    section_deadline: float = 0.0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def model(self) -> str:
        return "tiny" if self.tiny else "Llama-3.1-8B"

    def begin(self, seconds: float) -> None:
        """A section that should take no longer than this."""
        self.section_deadline = min(self.deadline, time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds of the section."""
        return self.section_deadline - time.monotonic()

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """This part's items."""
        return items[self.part[0] :: self.part[1]]

    def pick(self, small: Any, full: Any) -> Any:
        """For tiny shapes, or for real ones."""
        return small if self.tiny else full

    def broken(self) -> bool:
        """Whether an error has made the device unusable for this process."""
        if not self.on_gpu:
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def forget(self) -> None:
        """Give memory back to the device, and count its peak anew."""
        if self.on_gpu:
            with contextlib.suppress(AttributeError):  # else the next one's peak would lack them
                torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def skipped(what: Row, reason: object) -> Row:
    """A line for what could not be measured."""
    return what | {"skipped": " ".join(str(reason).split())[:300]}


def out_of_time(what: Row) -> Row:
    return skipped(what, "no time left")
