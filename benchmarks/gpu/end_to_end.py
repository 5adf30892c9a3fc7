"""A random model of a known shape in this runtime: int8 with 0.1 % outliers, and 16 bits, with the same graphs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from int8conv.runtime.decoder.cache import Cache
from int8conv.runtime.decoder.decoder import Decoder
from int8conv.runtime.generate.prefill import prefill
from int8conv.runtime.generate.sampler import Request
from int8conv.runtime.generate.sampling import Sampling

from .random_model import random_decoder
from .session import F16, Row, Session, out_of_time
from .timing import now

RUNS = 3


def rows(session: Session) -> Iterator[Row]:
    """Prompts of equal length, one after the other as the runtime has them, then steps with the sampler; medians of several runs."""
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
    requests = [Request([0] * prompt, Sampling(temperature=0.8, top_p=0.9, seed=i), logprobs=False) for i in range(batch)]  # fmt: skip
    sampler = decoder.backend.sampler(requests, decoder.config.vocab_size)
    everyone = range(batch)
    _prefilled(decoder, ids, cache)
    sampler.sample(step(ids[:, :1])[:, -1], everyone)  # compiles and captures
    prefills, decodes = [], []
    for _ in range(1 if session.compiling else session.pick(1, RUNS)):
        cache.truncate(0)
        started = now(session.device)
        token = sampler.sample(_prefilled(decoder, ids, cache), everyone).tokens[:, None]
        prefilled = now(session.device)
        for _ in range(steps):
            token = sampler.sample(step(token)[:, -1], everyone).tokens[:, None]
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


def _prefilled(decoder: Decoder, ids: Tensor, cache: Cache) -> Tensor:
    """The prompts in the cache; the last tokens' logits ``[b, vocab]``."""
    logits = [prefill(decoder, row[None], cache.sequence(i))[0, -1] for i, row in enumerate(ids)]
    return torch.stack(logits)
