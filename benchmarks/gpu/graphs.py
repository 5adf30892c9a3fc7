"""A captured decode step, replayed, against the same steps run one kernel at a time: equal bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .random_model import random_decoder
from .session import F16, Row, Session

STEPS = 4


def rows(session: Session) -> Iterator[Row]:
    """Sequences of different length in a batch; two layers of the model."""
    for name, share in (("int8", 0.001), ("fp16", None)):
        layers, steps = session.pick((1, 2), (2, STEPS))
        decoder, _ = random_decoder(session.model, F16, session.device, share, layers=layers)
        for batch in session.pick([2], [1, 7, 32]):
            prompts = [torch.randint(decoder.config.vocab_size, (1, 2 + i % 5), device=session.device) for i in range(batch)]  # fmt: skip
            tokens = torch.randint(decoder.config.vocab_size, (steps, batch, 1), device=session.device)  # fmt: skip
            caches = [decoder.cache(batch=batch, capacity=16) for _ in range(2)]
            for cache in caches:
                for i, prompt in enumerate(prompts):
                    decoder.forward(prompt, cache.sequence(i))
            step = decoder.backend.steps(decoder, caches[0])
            same = True
            for each in tokens:
                replayed = step(each).clone()
                same &= torch.equal(replayed, decoder.forward(each, caches[1], last_only=True))
            same &= torch.equal(caches[0].lengths, caches[1].lengths)
            yield {"weights": name, "batch": batch, "steps": steps, "equal": same}
