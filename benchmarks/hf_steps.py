"""How far single steps differ: int8conv's runtime, transformers with and without compiled layers, and float64 with the same weights.

    python benchmarks/hf_steps.py OUT [--text TEXT]

Largest absolute differences of logits in W8A16, of the last 8 tokens of a text.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, logging

import int8conv
import int8conv.hf
from int8conv.hf.compiled_layer import release_steps

TEXT = (
    "The memory of a computer holds the programs that it runs and the data that they work on. " * 2
)
STEPS = 8


def of_runtime(model: int8conv.Model, ids: Tensor) -> Tensor:
    cache = model.decoder.cache(batch=1, capacity=ids.shape[1])
    return _steps(ids, lambda part: model.decoder.forward(part, cache))


def of_transformers(model: PreTrainedModel, ids: Tensor) -> Tensor:
    cache = DynamicCache(config=model.config)
    return _steps(ids, lambda part: model(part, past_key_values=cache).logits)


def _steps(ids: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
    first = ids.shape[1] - STEPS
    forward(ids[:, :first])
    return torch.cat([forward(ids[:, i : i + 1]) for i in range(first, ids.shape[1])], dim=1)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--text", default=TEXT)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    own = int8conv.load(arguments.folder, mode="w8a16")
    ids = torch.tensor([own.tokenizer.encode(arguments.text)])
    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32)
    int8conv.hf.set_mode(model, "w8a16")
    found = {"runtime, steps": of_runtime(own, ids), "runtime, prompt": own.logits(ids)[:, -STEPS:]}
    found["transformers, compiled steps"] = of_transformers(model, ids)
    found["transformers, prompt"] = model(ids).logits[:, -STEPS:]
    release_steps(model)
    found["transformers, own steps"] = of_transformers(model, ids)
    exact = model.dequantize(dtype=torch.float32).double()
    exact.set_attn_implementation("eager")
    found["float64"] = exact(ids).logits[:, -STEPS:]
    print(f"largest logit {found['float64'].abs().max().item():.1f}")
    rows = [
        [name, *(f"{(a.double() - b.double()).abs().max().item():.1e}" for b in found.values())]
        for name, a in found.items()
    ]
    print(tabulate(rows, headers=["", *found]))


if __name__ == "__main__":
    main()
