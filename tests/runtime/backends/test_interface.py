"""Every backend runs the same small models, role by role, and gives what PyTorch's operators give.

The GPU's runs in Triton's interpreter, in float16; the others in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.convert.converter import convert_checkpoint
from int8conv.formats.int8.folder import ConvertedFolder, open_converted
from int8conv.kernels.cpu import jit
from int8conv.runtime.backends.gpu.backend import GpuBackend
from int8conv.runtime.backends.gpu.weights import DeviceConverted
from int8conv.runtime.backends.interface import Backend
from int8conv.runtime.backends.numba_backend import NumbaBackend
from int8conv.runtime.backends.torch_backend import TorchBackend
from int8conv.runtime.decoder.decoder import Decoder
from int8conv.runtime.generate.prefill import prefill
from int8conv.runtime.generate.sampler import Request
from int8conv.runtime.generate.sampling import Sampling
from int8conv.runtime.models.architecture import Architecture, read_architecture
from int8conv.runtime.weights.weights import ConvertedWeights, Weights

from ...checkpoints import LLAMA, OPT, write_checkpoint
from .gpu.conftest import few_programs  # noqa: F401  (a fixture)

pytestmark = pytest.mark.usefixtures("few_programs")

CPU = torch.device("cpu")
PROMPTS = ([3, 17, 40, 8, 21], [9, 2])
NEXT = (5, 6, 7)


def by_torch(converted: ConvertedFolder, form: Architecture) -> Weights:
    return ConvertedWeights(converted, torch.float32, "w8a16", backend=TorchBackend())


def by_numba(converted: ConvertedFolder, form: Architecture) -> Weights:
    return ConvertedWeights(converted, torch.float32, "w8a16", backend=NumbaBackend())


def by_gpu(converted: ConvertedFolder, form: Architecture) -> Weights:
    return DeviceConverted(converted, form.config, torch.float16, CPU, "w8a16")


BACKENDS: dict[str, tuple[type[Backend], Callable[[ConvertedFolder, Architecture], Weights], float]] = {
    "torch": (TorchBackend, by_torch, 0.0),
    "numba": (NumbaBackend, by_numba, 1e-5),
    "gpu": (GpuBackend, by_gpu, 1e-2),
}  # fmt: skip
"""What it is, what makes its weights, and how far its logits may be from PyTorch's, relative to their root mean square."""
MODELS: dict[str, dict[str, Any]] = {"llama": LLAMA, "opt": OPT}


@pytest.fixture(scope="module", params=list(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("model")
    source = write_checkpoint(where / "source", MODELS[request.param] | {"num_hidden_layers": 2})
    convert_checkpoint(source, where / "int8")
    return where / "int8"


def decoder_of(folder: Path, name: str) -> Decoder:
    converted = open_converted(folder)
    form = read_architecture(converted.checkpoint.config, converted.checkpoint.tensors)
    weights = BACKENDS[name][1](converted, form)
    return Decoder(form, weights, weights.dtype)


@torch.inference_mode()
def run(decoder: Decoder) -> tuple[Tensor, list[int], list[int]]:
    """Logits of prompts of different length and of steps of both, float32 ``[b, 1 + steps, vocab]``; the likeliest tokens after
    them, and the lengths of the cache."""
    backend = decoder.backend
    cache = decoder.cache(batch=len(PROMPTS), capacity=12)
    parts = [(torch.tensor([prompt]), cache.sequence(i)) for i, prompt in enumerate(PROMPTS)]
    logits = [torch.cat([prefill(decoder, ids, part) for ids, part in parts])]
    step = backend.steps(decoder, cache)
    logits += [step(torch.tensor([[token], [token + 1]])).clone() for token in NEXT]
    greedy = [Request(prompt, Sampling(), logprobs=False) for prompt in PROMPTS]
    sampled = backend.sampler(greedy, decoder.config.vocab_size).sample(logits[-1][:, -1], [0, 1])
    tokens = [sampled.choice(i).token for i in range(len(PROMPTS))]
    assert tokens == logits[-1][:, -1].argmax(-1).tolist()
    return torch.cat(logits, dim=1).float(), tokens, cache.lengths.tolist()


@pytest.mark.parametrize("name", BACKENDS)
def test_side_by_side(folder: Path, name: str) -> None:
    kind, _, tolerance = BACKENDS[name]
    if kind is NumbaBackend and not jit.available():
        pytest.skip("numba is not installed")
    decoder = decoder_of(folder, name)
    assert type(decoder.backend) is kind
    assert all(block.fused is not None for block in decoder.blocks) == (kind is NumbaBackend)
    expected, _, _ = run(decoder_of(folder, "torch"))
    found, _, lengths = run(decoder)
    assert lengths == [len(prompt) + len(NEXT) for prompt in PROMPTS]
    assert found.shape == expected.shape
    difference = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert difference <= tolerance
