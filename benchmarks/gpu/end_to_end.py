"""A random model of a known shape in this runtime: int8 with 0.1 % outliers, and 16 bits, with the same graphs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from int8conv.runtime.decoder.decoder import Decoder

from .random_model import random_decoder
from .session import F16, Row, Session, out_of_time
from .timing import now

RUNS = 3


def rows(session: Session) -> Iterator[Row]:
    """Prompts of equal length in one pass, then steps; medians of several runs."""
    prompt, steps = session.pick((3, 1), (512, 64))
    for name, share in (("int8", 0.001), ("fp16", None)):
        session.forget()
        decoder, nbytes = random_decoder(
            session.model, F16, session.device, share, layers=1 if session.compiling else None
        )
        for batch in session.pick([2], [1, 32, 8]):
            of = {"runtime": "int8conv", "weights": name, "batch": batch, "prompt": prompt, "steps": steps}  # fmt: skip
            if session.left() < 0:
                yield out_of_time(of)
                continue
            ids = torch.randint(decoder.config.vocab_size, (batch, prompt), device=session.device)
            yield of | _measured(session, decoder, ids, steps, nbytes)
        del decoder


def _measured(session: Session, decoder: Decoder, ids: Tensor, steps: int, nbytes: int) -> Row:
    batch, prompt = ids.shape
    cache = decoder.cache(batch=batch, capacity=prompt + steps + 1)
    step = decoder.backend.steps(decoder, cache)
    decoder.forward(ids, cache, last_only=True)
    step(ids[:, :1])  # compiles and captures
    prefills, decodes = [], []
    for _ in range(1 if session.compiling else session.pick(1, RUNS)):
        cache.truncate(0)
        started = now(session.device)
        token = decoder.forward(ids, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
        prefilled = now(session.device)
        for _ in range(steps):
            token = step(token)[:, -1].argmax(-1, keepdim=True)
        decodes.append((now(session.device) - prefilled) / steps)
        prefills.append(prefilled - started)
    prefill, decode = statistics.median(prefills), statistics.median(decodes)
    kv = cache.nbytes * (prompt + steps / 2) / cache.capacity
    speed = (nbytes + kv) / decode
    return {
        "prefill tok/s": batch * prompt / prefill, "decode tok/s": batch / decode, "ms a step": decode * 1e3,
        "GB/s": speed * 1e-9, "share of copy": speed / session.copy,
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if session.on_gpu else None,
    }  # fmt: skip
