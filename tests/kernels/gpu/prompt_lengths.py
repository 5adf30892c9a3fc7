"""What prompts of every length, and caches of every capacity, would have Triton compile: ``python -m tests.kernels.gpu.prompt_lengths``.

A layer of Llama-3.1-8B after a default conversion is launched on meta tensors for a GPU that is not there, with 1 to 4096 tokens and as
many positions, in a cache of 16 bits and of 8. Prints a line of JSON per specialisation: its kernel, constants, the first length that
needs it, and how many do.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Literal

from torch import Tensor

from int8conv.kernels.gpu.attention import attend
from int8conv.kernels.gpu.linear import Operand, gated, linear
from int8conv.kernels.gpu.prologue import Prologue
from int8conv.kernels.gpu.rotary import rotate_and_store
from int8conv.kernels.weight import MixedWeight

from .compiling import Recorded, recording, specialize
from .shipped import BF16, F16, F32, I8, I32, empty

HIDDEN, INNER, HEADS, KV_HEADS, SIZE = 4096, 14336, 32, 8, 128


def weight(out: int, channels: int, *, heavy: bool = False) -> MixedWeight:
    k = 32
    index, columns = empty(k, dtype=I32), empty(out, k, dtype=BF16)
    bits: Literal[8, 16] = 16 if heavy else 8
    return MixedWeight(
        empty(out, channels, dtype=I8), empty(out, dtype=F32), index, columns, None if heavy else 6.0, activation_bits=bits,
    )  # fmt: skip


QKV, OUT = weight((HEADS + 2 * KV_HEADS) * SIZE, HIDDEN), weight(HIDDEN, HEADS * SIZE)
GATE_UP, DOWN = weight(2 * INNER, HIDDEN), weight(HIDDEN, INNER, heavy=True)
GAIN = empty(HIDDEN, dtype=BF16)


def layer(tokens: int) -> None:
    """A prompt of ``tokens`` in caches with room for no more, then a token after it."""
    for count in (tokens, 1):
        x = empty(count, HIDDEN, dtype=BF16)
        norm = Prologue(norm="rms", weight=GAIN, eps=1e-5)
        qkv = linear(Operand(x, norm), QKV)
        inner = gated(Operand(x, norm), GATE_UP, activation="silu")
        linear(Operand(empty(count, HIDDEN, dtype=BF16)), OUT, residual=x)
        linear(inner, DOWN, residual=x)
        for scales in (None, empty(1, KV_HEADS, tokens, 1, dtype=F16)):
            attention(qkv, tokens, None if scales is None else (scales, scales))


def attention(qkv: Tensor, capacity: int, scales: tuple[Tensor, Tensor] | None) -> None:
    cache = empty(1, KV_HEADS, capacity, SIZE, dtype=BF16 if scales is None else I8)
    tables = empty(8192, SIZE // 2, dtype=F32)
    q, k, v = qkv.split([HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE], 1)
    if len(q) == 1:
        lengths = empty(1, dtype=I32)
        attend(q, k, v, (tables, tables), lengths, cache, cache, scale=0.1, scales=scales)
    else:
        rotate_and_store(q, k, v, (tables, tables), empty(1, dtype=I32), cache, cache, scales=scales)  # fmt: skip


def key(launched: Recorded) -> tuple[str, str, str]:
    """The kernel, its constants, and everything else that is known when it is compiled."""
    found = specialize(launched)
    constants = found.constants | {k: v for k, v in launched.meta.items() if k.startswith("num_")}
    rest = {"signature": found.signature, "attributes": [i for (i,) in found.attributes]}
    return launched.kernel.__name__, json.dumps(constants, default=str), json.dumps(rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    found: dict[tuple[str, str, str], list[int]] = {}
    for tokens in range(1, options.tokens + 1):
        with recording(options.capability) as launches:
            layer(tokens)
        for each in {key(launched) for launched in launches}:
            found.setdefault(each, []).append(tokens)
    for (kernel, constants, rest), lengths in found.items():
        row: dict[str, Any] = {
            "kernel": kernel,
            "constants": constants,
            "rest": rest,
            "first": lengths[0],
            "lengths": len(lengths),
        }
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
