"""Greedy text of llama.cpp on exported GGUF files, beside int8conv's runtime on the source: which difference has which cause.

    python benchmarks/gguf_texts.py SRC [--new 24] [--types float32 float16 Q8_0]

Needs int8conv, ``gguf`` and ``llama-cpp-python`` in one environment. llama.cpp computes with a float32 cache and without flash attention, so
that nothing but the file's weights, and what it makes of activations, differs from the source in float32. With Q8_0 weights it rounds
activations to 8 bits too; the row "Q8_0 weights, runtime" has the same weights without that, in int8conv's runtime.

For each file: prompts whose text is the source's; where the first of the others parts, how likely the two tokens are for the source; and over
all positions of the source's texts, the largest difference of logits, the mean KL divergence, and how many most likely tokens are the same.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
from pathlib import Path

import llama_cpp
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import load_file, save_file
from tabulate import tabulate
from torch import Tensor

import int8conv

PROMPTS = (
    "A vector is",
    "The function returns the",
    "import os\n",
    "The memory of a computer holds",
    "In the year 1969,",
)
F32 = 0
"""``GGML_TYPE_F32``."""


class Runtime:
    """int8conv's own runtime in float32."""

    def __init__(self, folder: Path) -> None:
        self.model = int8conv.load(folder, dtype="float32")

    def logits(self, ids: list[int]) -> Tensor:
        """float32 ``[tokens, vocab]``."""
        return self.model.logits(torch.tensor([ids]))[0]

    def greedy(self, ids: list[int], new: int) -> list[int]:
        """Token ids, followed by ``new`` others."""
        decoder = self.model.decoder
        cache = decoder.cache(batch=1, capacity=len(ids) + new)
        following = ids
        for _ in range(new):
            scores = decoder.forward(torch.tensor([following]), cache, last_only=True)
            following = [int(scores.argmax())]
            ids = ids + following
        return ids


class LlamaCpp:
    """llama.cpp on a file, with the same methods."""

    def __init__(self, file: Path) -> None:
        threads = torch.get_num_threads()
        self.model = llama_cpp.Llama(
            str(file), n_ctx=256, logits_all=True, type_k=F32, type_v=F32, flash_attn=False, n_threads=threads,
            n_threads_batch=threads, verbose=False,
        )  # fmt: skip

    def logits(self, ids: list[int]) -> Tensor:
        self.model.reset()
        self.model.eval(ids)
        return torch.tensor(self.model.scores[: len(ids)])

    def greedy(self, ids: list[int], new: int) -> list[int]:
        self.model.reset()
        following = ids
        for _ in range(new):
            self.model.eval(following)
            following = [int(self.model.scores[self.model.n_tokens - 1].argmax())]
            ids = ids + following
        return ids


def rounded(source: Path, out: Path) -> Path:
    """The source with its matrices rounded to Q8_0, as a float32 checkpoint."""
    shutil.copytree(source, out)
    for shard in out.glob("*.safetensors"):
        tensors = {name: tensor.float() for name, tensor in load_file(shard).items()}
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
                bits = quants.quantize(tensor.numpy(), GGMLQuantizationType.Q8_0)
                tensors[name] = torch.from_numpy(quants.dequantize(bits, GGMLQuantizationType.Q8_0))
        save_file(tensors, shard)
    return out


def compare(
    other: Runtime | LlamaCpp, source: Runtime, texts: list[list[int]], prompts: list[list[int]]
) -> list[str]:
    """A row of the table."""
    same, parted, largest, divergence, agree, count = 0, "", 0.0, 0.0, 0, 0
    for ids, prompt in zip(texts, prompts, strict=True):
        found = other.greedy(prompt, len(ids) - len(prompt))
        same += found == ids
        if found != ids and not parted:
            at = next(i for i, (a, b) in enumerate(zip(found, ids, strict=True)) if a != b)
            likely = source.logits(ids[:at])[-1].softmax(-1)
            parted = f"token {at - len(prompt) + 1}: {likely[ids[at]]:.1%} and {likely[found[at]]:.1%}"  # fmt: skip
        ours, theirs = source.logits(ids).double(), other.logits(ids).double()
        largest = max(largest, (ours - theirs).abs().max().item())
        a, b = ours.log_softmax(-1), theirs.log_softmax(-1)
        divergence += (a.exp() * (a - b)).sum().item()
        agree += int((a.argmax(-1) == b.argmax(-1)).sum())
        count += len(ids)
    return [f"{same} of {len(texts)}", parted, f"{largest:.1e}", f"{divergence / count:.1e}", f"{agree / count:.0%}"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--types", nargs="+", default=["float32", "float16", "Q8_0"])
    options = parser.parse_args()
    source = Runtime(options.source)
    prompts = [source.model.tokenizer.encode(prompt) for prompt in PROMPTS]
    texts = [source.greedy(prompt, options.new) for prompt in prompts]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in options.types:
            file = Path(scratch) / f"{kind}.gguf"
            dtype = None if kind == "Q8_0" else kind
            int8conv.export_checkpoint(options.source, file, to="gguf", dtype=dtype)
            peer = LlamaCpp(file)
            for prompt, ids in zip(PROMPTS, prompts, strict=True):
                assert peer.model.tokenize(prompt.encode()) == ids, prompt
            rows.append([f"{kind}, llama.cpp", *compare(peer, source, texts, prompts)])
            file.unlink()
        if "Q8_0" in options.types:
            other = Runtime(rounded(options.source, Path(scratch) / "rounded"))
            rows.append(["Q8_0 weights, runtime", *compare(other, source, texts, prompts)])
    print(f"{options.source.name}, {options.new} tokens, llama-cpp-python {llama_cpp.__version__}, {platform.machine()}")  # fmt: skip
    headers = ["file", "same text", "first to part", "max |logit|", "KL", "same token"]
    print(tabulate(rows, headers, disable_numparse=True))


if __name__ == "__main__":
    main()
