"""What a narrower key/value cache costs: perplexity, distance from the source, and bytes.

    python benchmarks/kv_cache.py MODEL... --text EVAL.txt [--tokens 12288] [--window 256] [--factors 1 32] [--out FILE.md]

Each model as it is and with outlier features put in (``inject_outliers.py``; a value channel of a head among them), as the source,
in W8A16 and in W8A8, with each cache. "ratio" is the perplexity over that of the same weights with a float16 cache; KL divergence
and agreement are from the source with a float32 cache, so that those of "source" are the cache's alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from inject_outliers import inject
from tabulate import tabulate

import int8conv
from int8conv.runtime.backends.torch_backend import TorchBackend
from int8conv.runtime.decoder import quantized_cache
from int8conv.runtime.measure.evaluate import evaluate
from int8conv.runtime.models.config import DecoderConfig

CACHES = ("float16", "bfloat16", "int8", "int8, float32 scales")
"""Every other one where weights are int8."""
HEADERS = ("model", "factor", "weights", "cache", "bytes/head/token", "perplexity", "ratio", "KL mean", "KL worst", "top-1")  # fmt: skip


@contextmanager
def scales(dtype: torch.dtype) -> Iterator[None]:
    """Scales of an int8 cache in another dtype."""
    before = quantized_cache._SCALES
    quantized_cache._SCALES = dtype
    try:
        yield
    finally:
        quantized_cache._SCALES = before


def bytes_of(config: DecoderConfig, dtype: torch.dtype) -> float:
    cache = TorchBackend().cache(config, batch=1, capacity=1, dtype=dtype)
    return cache.nbytes / (2 * config.num_layers * config.num_kv_heads)


def main(models: list[Path], arguments: argparse.Namespace, scratch: Path) -> str:
    rows = []
    for model in models:
        for factor in arguments.factors:
            source, out = model, scratch / f"{model.name}-{factor}-int8"
            if factor != 1:
                source = scratch / f"{model.name}-{factor}"
                inject(model, source, factor)
            int8conv.convert_checkpoint(source, out)
            config = int8conv.load(source).config
            for weights in ("source", "w8a16", "w8a8"):
                path, mode = (source, "w8a8") if weights == "source" else (out, weights)
                baseline = 0.0
                for cache in CACHES if weights == "source" else CACHES[::2]:
                    name, _, scale = cache.partition(", ")
                    with scales(torch.float32 if scale else torch.float16):
                        found = evaluate(
                            path, arguments.text, against=source, mode=mode, kv_cache=name,
                            window=arguments.window, tokens=arguments.tokens,
                        )  # fmt: skip
                        nbytes = bytes_of(config, getattr(torch, name))
                    baseline = baseline or found.perplexity
                    a = found.against
                    assert a is not None
                    rows.append(
                        [model.name, factor, weights, cache, f"{nbytes:.0f}", f"{found.perplexity:.4f}",
                         f"{found.perplexity / baseline:.5f}", f"{a.kl_mean:.2e}", f"{a.kl_worst:.1e}", f"{a.top1:.2%}"]
                    )  # fmt: skip
                    print(*rows[-1], flush=True)
    return tabulate(rows, HEADERS, "simple", disable_numparse=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=12288)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = main(arguments.models, arguments, Path(scratch))
    print(result)
    if arguments.out:
        arguments.out.write_text(result + "\n")
