"""The peak of memory that ``int8conv bench`` measures, beside what ``footprint`` predicts, and its speeds, from a real folder."""

from __future__ import annotations

from collections.abc import Iterator

from int8conv.runtime.measure.bench import benchmark

from .random_folder import folders
from .session import Row, Session, out_of_time


def rows(session: Session) -> Iterator[Row]:
    """A converted folder and its source, at several contexts and batches."""
    source, converted = folders(session.scratch, session.model, session.pick(2, 4), session.device)
    cases = [(512, 16, 1), (2048, 16, 8), (8000, 16, 1)]
    for name, folder in (("int8", converted), ("fp16", source)):
        for prompt, new, batch in session.pick([(3, 1, 1)], cases):
            of = {"weights": name, "batch": batch, "prompt": prompt}
            if session.left() < 0:
                yield out_of_time(of)
                continue
            session.forget()
            found = benchmark(
                folder, session.device.type, dtype="float16", prompt_tokens=prompt, new_tokens=new, batch=batch, runs=1
            )  # fmt: skip
            measured, predicted = found.memory.peak, found.predicted.total
            yield of | {
                "measured MB": None if measured is None else measured * 1e-6, "predicted MB": predicted * 1e-6,
                "measured / predicted": None if measured is None else measured / predicted,
                "device MB": None if found.memory.device is None else found.memory.device * 1e-6,
                "load s": found.load_seconds, "load GB/s": found.moved.speed * 1e-9 if found.moved else None,
            }  # fmt: skip
