# mypy: disable-error-code="import-untyped"
"""What ``warm`` compiles, beside what loading and running the same model launches: ``python -m tests.runtime.backends.gpu.warmed_kernels``.

Runs without ``TRITON_INTERPRET``, as a process of its own. Triton is told of a GPU that is not there; its hook is called with the key of
every kernel that it would compile, from ``warm`` on meta tensors and from real launches on real tensors, and compiles none. At the end
one small kernel is compiled ahead of time twice. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.runtime.driver import driver

from int8conv.convert.converter import convert_checkpoint
from int8conv.kernels.gpu import launch
from int8conv.kernels.gpu.prologue import Prologue
from int8conv.kernels.gpu.quantize import apply
from int8conv.runtime import loader
from int8conv.runtime.backends.gpu.compiling import AbsentGpu, ahead_of_time, listening
from int8conv.runtime.backends.gpu.warm import warm
from int8conv.runtime.devices import Placement, Target
from int8conv.runtime.generate.session import Session
from int8conv.runtime.model import Model

from ....checkpoints import LLAMA, write_checkpoint

CPU, GPU = torch.device("cpu"), 80
Keys = set[tuple[str, str]]
LLAMA_LONG = LLAMA | {"max_position_embeddings": 1024}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 97,
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 1,
    "activation_function": "relu",
    "n_positions": 1024,
}
GEMMA2 = LLAMA_LONG | {
    "model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0, "sliding_window": 9,
    "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
}  # fmt: skip
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llama": (LLAMA_LONG | {"num_hidden_layers": 1}, {"quantize": ("lm_head",), "outliers": "calibrated"}, {"kv_cache": "int8"}),
    "mixtral": (LLAMA_LONG | {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}, {}, {"mode": "w8a16"}),
    "gpt2": (GPT2, {"max_outliers": 0}, {"mode": "w8a8", "outlier_fallback": False}),
    "gemma2, a source": (GEMMA2, {}, {}),
}  # fmt: skip
"""Config, options of ``convert_checkpoint`` and of ``load``."""


@contextmanager
def watched() -> Iterator[Keys]:
    """The keys of kernels that would be compiled."""
    keys: Keys = set()

    def hook(*, fn: Any, key: object, **rest: Any) -> bool:
        keys.add((fn.name, str(key)))
        return True

    with mock.patch.object(triton.knobs.runtime, "jit_cache_hook", hook):
        yield keys


def zeros(*shape: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=like.device)


def launched(folder: Path, options: dict[str, Any]) -> Keys:
    """By a model in the CPU's memory: prompts of many lengths, alone, in a session, in batches, scored."""
    with (
        watched() as keys,
        mock.patch.object(driver, "_active", AbsentGpu(GPU)),
        mock.patch.object(launch, "empty", zeros),
        mock.patch.object(loader, "find_placement", lambda device: Placement(device, CPU)),
    ):
        use(loader.load(folder, device="cuda", tokenizer=False, **options))
    return keys


def use(model: Model) -> None:
    vocab = model.config.vocab_size
    some: Callable[[int], list[int]] = lambda n: [i % vocab for i in range(n)]  # noqa: E731
    for tokens in (1, 11, 21, 40):
        model.generate(some(tokens), max_new_tokens=2, temperature=tokens % 2, seed=1)
    session = Session(model.decoder)
    for tokens in (5, 37):
        model.generate(some(tokens), max_new_tokens=3, session=session, repetition_penalty=1.2)
    model.generate([1, 2, 3] * 5, max_new_tokens=9, prompt_lookup=True)
    model.generate_batch([some(n) for n in (2, 9, 4)], max_new_tokens=2, logprobs=True)
    model.score([(some(9), some(3)), (some(9), some(5))])
    batch = model.batch(3)
    for n in (3, 7, 2):
        batch.add(model.continuation(some(n), max_new_tokens=3))
    while not batch.is_idle:
        batch.step()
    with torch.inference_mode():
        for tokens in (100, 150, 700):
            ids = torch.tensor([some(tokens)])
            model.decoder.forward(ids, model.decoder.cache(batch=1, capacity=tokens + 3), last_only=True)  # fmt: skip


def compared(name: str, parent: Path) -> dict[str, Any]:
    values, converting, loading = MODELS[name]
    folder = write_checkpoint(parent / "source", values)
    if "source" not in name:
        convert_checkpoint(folder, parent / "int8", **{"outliers": "data-free"} | converting)
        folder = parent / "int8"
    found = {"launched": launched(folder, loading)}
    for dtype in (None, "bfloat16")[: 2 if name == "llama" else 1]:
        with watched() as warmed:
            warm(folder, Target(GPU, None), batches=[3], dtype=dtype, **loading)
        found[f"lacking {dtype}"] = found["launched"] - warmed
    return {key: sorted(keys) for key, keys in found.items()}


def compiled_twice() -> list[tuple[str, bool]]:
    """A kernel's name, and whether it took any time."""
    x = torch.empty(1, 64, dtype=torch.float16, device="meta")
    found: list[tuple[str, bool]] = []
    for _ in range(2):
        with listening(lambda name, seconds: found.append((name, seconds > 0))), ahead_of_time(Target(GPU, None), 1) as compiler:  # fmt: skip
            apply(x, Prologue(activation="relu"))
            apply(x.new_empty(7, 64), Prologue(activation="relu"))
            assert launch.capability(x.device) == GPU
        assert compiler.count == 1
        for cached in launch_caches():
            cached.clear()
    return found


def launch_caches() -> Iterator[dict[Any, Any]]:
    """What Triton has in memory of the kernel that was compiled."""
    from int8conv.kernels.gpu.quantize import quantize_kernel

    for caches in quantize_kernel.device_caches.values():
        yield caches[0]


def main() -> None:
    found: dict[str, Any] = {}
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = compared(name, Path(folder))
    found["compiled"] = compiled_twice()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
