"""Checks at the end that a source is unchanged since the start; otherwise weights of two checkpoints could be mixed.

A file's stamp is its size, times and inode. Times have a granularity (the kernel's clock tick, or whole seconds), so after a
very recent write we wait until another write would be sure to change the time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..formats.regular_file import open_regular
from ..formats.safetensors.checksum import checksum_at
from ..formats.safetensors.storage import LocalFile, changed_file
from ..formats.safetensors.stored import stored_checksum
from ..formats.source.checkpoint import CONFIG_FILE, Checkpoint
from ..formats.source.weight_files import is_weights_name
from .plan import Task
from .stream import TaskResult

_STEP: Final = 20_000_000
"""In nanoseconds: twice the tick of the slowest kernel clock."""
_COARSE_STEP: Final = 2_000_000_000
"""For file systems with a granularity of one or two seconds."""
_MOST_TEXT_BYTES: Final = 1 << 28
_SECOND: Final = 1_000_000_000

Stamp = tuple[int, ...]


class SourceWatch:
    """The state of a source's config, indexes and weights files before they are opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        self._before = {name: self._stamp(name) for name in names if _counts(name)}
        _wait_for_the_clock(stamp for stamp in self._before.values() if stamp)
        self._texts = {name: self._checksum(name) for name in self._before if _is_text(name)}

    def check_files(self, checkpoint: Checkpoint, *, strict: bool = False) -> None:
        """Check that the weights files are still those whose headers were read.

        Args:
            checkpoint: the source.
            strict: also refuse a file of which only the status change time differs: for results without a checksum of the
                source.

        Raises:
            FileChangedError: a file changed.
            NotFoundError: a file is gone.
        """
        for file in {tensor.file for tensor in checkpoint.tensors.values()}:
            if isinstance(file, LocalFile):
                with file.descriptor():
                    pass
                if strict and self._stamp(file.name) != self._before.get(file.name):
                    raise changed_file(file.path)

    def check(
        self, checkpoint: Checkpoint, tasks: Sequence[Task], results: Sequence[TaskResult]
    ) -> None:
        """Check the source at the end.

        If only the status change time of a file differs (a new link, other permissions, or a modification time that was set
        back), its bytes decide.

        Raises:
            FileChangedError: it differs from what was converted.
            NotFoundError: it is gone.
        """
        self.check_files(checkpoint)
        changed = {name for name, before in self._before.items() if self._stamp(name) != before}
        for name in changed & set(self._texts):
            if self._checksum(name) != self._texts[name]:
                raise changed_file(self._folder / name)
        for task, result in zip(tasks, results, strict=True):
            file = task.source.file
            if (
                isinstance(file, LocalFile)
                and file.name in changed
                and stored_checksum(task.source) != result.source_checksum
            ):
                raise changed_file(file.path).about(task.source.name)

    @contextmanager
    def named_errors(self, checkpoint: Checkpoint) -> Iterator[None]:
        """On an error of the operating system, first check whether the source is still there."""
        try:
            yield
        except OSError:
            self.check_files(checkpoint)
            raise

    def _stamp(self, name: str) -> Stamp | None:
        try:
            found = (self._folder / name).stat()
        except OSError:
            return None
        return (
            found.st_size, found.st_ino, found.st_dev, found.st_mtime_ns, found.st_ctime_ns,
        )  # fmt: skip

    def _checksum(self, name: str) -> str | None:
        try:
            fd = open_regular(self._folder / name)
        except OSError:
            return None
        try:
            return checksum_at(fd, 0, min(os.fstat(fd).st_size, _MOST_TEXT_BYTES))
        finally:
            os.close(fd)


def _is_text(name: str) -> bool:
    return name.endswith(".json")


def _counts(name: str) -> bool:
    return name == CONFIG_FILE or is_weights_name(name)


def _wait_for_the_clock(stamps: Iterable[Stamp]) -> None:
    now, wait = time.time_ns(), 0
    for stamp in stamps:
        for written in stamp[3:]:
            step = _STEP if written % _SECOND else _COARSE_STEP
            age = now - written
            if 0 <= age < step:
                wait = max(wait, step - age)
    time.sleep(wait / _SECOND)
