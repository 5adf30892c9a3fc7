"""A generation as an iterator over its text."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from types import TracebackType

from .generation import Continuation, Generation


class Stream:
    """Pieces of text as they come; made by ``Model.stream``.

    Whoever stops reading closes it: with ``close``, or by ``with model.stream(...) as stream``.
    """

    def __init__(
        self, run: Generator[None, None, None], continuation: Continuation, pieces: deque[str]
    ) -> None:
        """``run`` puts text into ``pieces``, a token at a time."""
        self._run = run
        self._continuation = continuation
        self._pieces = pieces

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        """The next piece, which may take several tokens.

        Raises:
            StopIteration: there is no more.
            GenerationError: the logits are not numbers, or the session is in use.
        """
        while not self._pieces:
            if not self.step():
                break
        if not self._pieces:
            raise StopIteration
        return self._pieces.popleft()

    def step(self) -> bool:
        """Generate one token, which may have no text yet -> whether there was one to generate."""
        try:
            next(self._run)
        except StopIteration:
            return False
        return True

    def take_text(self) -> str:
        """What has come since it was asked last."""
        text = "".join(self._pieces)
        self._pieces.clear()
        return text

    def close(self) -> None:
        """End the generation here: its result has what came so far, and its session stays usable."""
        self._continuation.cancel()
        self._run.close()

    @property
    def result(self) -> Generation:
        """What has been generated; complete once the iterator has ended."""
        return self._continuation.result()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()
