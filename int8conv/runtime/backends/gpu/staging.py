"""From files to the memory of a GPU: several threads read into pinned memory while the device copies from it.

One thread reads 5 to 10 GB/s from the page cache, a PCIe 5 link carries about 50 GB/s: hence several threads. Each has two pinned
stages and its own stream, and fills one stage while the other is copied.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ....formats.safetensors.storage import Reader, WeightsFile
from ....host import processors

READERS: Final = 8
"""Number of threads, if the process has as many processors."""
STAGE_BYTES: Final = 8 << 20
_STAGES: Final = 2


@dataclass(frozen=True)
class Piece:
    """Bytes of a file, and their destination."""

    offset: int
    dtype: torch.dtype
    """Stored dtype."""
    target: Tensor
    """Destination on the device, 1-D; if it has another dtype, numbers are converted."""

    @property
    def nbytes(self) -> int:
        return self.target.numel() * self.dtype.itemsize

    def split(self, most: int) -> Iterator[Piece]:
        """Split into parts of at most ``most`` bytes."""
        count = max(most // self.dtype.itemsize, 1)
        for first in range(0, self.target.numel(), count):
            target = self.target[first : first + count]
            yield Piece(self.offset + first * self.dtype.itemsize, self.dtype, target)


class Staging:
    """Pinned memory, shared by all files that pass through it; takes device memory only if a dtype changes.

    Args:
        device: destination; for a CPU nothing is pinned, the rest is the same.
        readers: number of threads; None: ``READERS``, or the number of processors if lower.
        stage_bytes: number of bytes that a thread reads at once, a multiple of 8.
    """

    def __init__(
        self, device: torch.device, *, readers: int | None = None, stage_bytes: int = STAGE_BYTES
    ) -> None:
        self._device = device
        self._stage_bytes = stage_bytes
        count = min(READERS, processors()) if readers is None else readers
        self._lanes: list[_Lane | None] = [None] * count

    def fill(self, file: WeightsFile, pieces: Iterable[Piece]) -> None:
        """Read pieces of a file; returns when all are on the device.

        Raises:
            NotFoundError, TruncatedFileError: the file cannot be read.
        """
        parts = [part for piece in pieces for part in piece.split(self._stage_bytes)]
        threads = min(len(self._lanes), len(parts))
        if not threads:
            return
        if self._device.type == "cuda":  # earlier work may still be using the destination memory
            torch.cuda.current_stream(self._device).synchronize()
        queue = _Queue(parts)
        with file.open() as reader, ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(self._run, i, queue, reader) for i in range(threads)]
        for each in running:
            each.result()

    def _run(self, number: int, queue: _Queue, reader: Reader) -> None:
        try:
            lane = self._lanes[number]
            if lane is None:  # created in the thread, as pinning takes a while
                lane = self._lanes[number] = _Lane(self._device, self._stage_bytes)
            for piece in queue:
                lane.take(reader, piece)
            lane.finish()
        except BaseException:
            queue.stop()
            raise


class _Queue:
    """Pieces in order, shared by several threads."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._next = 0
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Piece]:
        while True:
            with self._lock:
                if self._next >= len(self._pieces):
                    return
                self._next += 1
                number = self._next - 1
            yield self._pieces[number]

    def stop(self) -> None:
        """Hand out no more pieces."""
        with self._lock:
            self._next = len(self._pieces)


class _Lane:
    """A thread's stages and stream."""

    def __init__(self, device: torch.device, stage_bytes: int) -> None:
        on_gpu = device.type == "cuda"
        self._device = device
        self._stages = [
            torch.empty(stage_bytes, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(_STAGES)
        ]
        self._stream: torch.cuda.Stream | None = None
        self._copied: list[torch.cuda.Event] = []
        if on_gpu:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._copied = [torch.cuda.Event() for _ in range(_STAGES)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def take(self, reader: Reader, piece: Piece) -> None:
        """Read a piece and start copying it."""
        turn = self._turn = (self._turn + 1) % _STAGES
        if self._stream is not None:
            self._copied[turn].synchronize()
        stage = self._stages[turn][: piece.nbytes]
        reader.read_into(memoryview(stage.numpy()), piece.offset)  # type: ignore[arg-type]
        stored = stage.view(piece.dtype)
        with self._on_stream():
            if piece.dtype != piece.target.dtype:
                stored = stored.to(self._device, non_blocking=True)
            piece.target.copy_(stored, non_blocking=True)
            if self._stream is not None:
                self._copied[turn].record()

    def finish(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
