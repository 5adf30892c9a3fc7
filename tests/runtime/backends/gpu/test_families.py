"""Every family with the kernels for GPUs, in Triton's interpreter, against the CPU's."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.convert.converter import convert_checkpoint
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.backends.gpu import attention as gpu_attention
from int8conv.runtime.backends.gpu.cache import StaticCache
from int8conv.runtime.backends.gpu.weights import DeviceCheckpoint
from int8conv.runtime.decoder.decoder import Decoder
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.families import FAMILIES
from int8conv.runtime.weights.weights import CheckpointWeights

from ....checkpoints import write_checkpoint
from ...models.newer_configs import NEWER
from ...models.test_families import CONFIGS, config_of
from .rehearsal import (
    CPU,
    check,
    decoders,
    tokens,
    without_the_host,
)

pytestmark = pytest.mark.usefixtures("few_programs")

ALIKE = {
    "mistral", "qwen2", "qwen3, wide heads, biases", "phi, other shares", "phi3", "gemma, one key head", "gemma2, no caps",
    "gemma3", "granite", "stablelm", "starcoder2, a window, no biases", "gpt2, other widths, scores not scaled",
    "gptj, whole heads", "bloom", "falcon, groups, one norm", "qwen2_moe", "qwen3_moe",
}  # fmt: skip
"""Configurations that do nothing between the linears that another one here does not."""
ALIKE |= set(NEWER) - {
    "smollm3", "ministral3", "hunyuan_v1_dense", "jais2", "glm4_moe", "qwen3_next", "qwen3_5_text", "falcon_h1, a norm, multipliers",
    "granitemoehybrid", "nemotron_h", "lfm2", "deepseek_v2, plain queries, wide values", "deepseek_v3", "gemma4_text",
    "gemma4_text, experts, own keys, biases", "gemma3n_text", "apertus", "phimoe", "gpt_oss",
}  # fmt: skip
NAMES = [name for name in CONFIGS if name not in ALIKE]


def config(name: str) -> dict[str, Any]:
    """Two layers, short windows, and frequencies that are others beyond 5 positions, where they are."""
    values = config_of(name).to_dict()
    layers = "n_layer" if "n_layer" in values else "num_hidden_layers"
    if values["model_type"] in ("gemma4_text", "gemma3n_text", "nemotron_h"):
        return values  # a layer of each kind
    values[layers] = 2
    for key in ("layer_types", "no_rope_layers", "mlp_layer_types"):
        if values.get(key):
            values[key] = values[key][:2]
    if (values.get("sliding_window") or 99) < 20:
        values["sliding_window"] = 4
    rope = values.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        rope["original_max_position_embeddings"] = 5
    if rope.get("rope_type") == "dynamic":
        values["max_position_embeddings"] = 5
    return values


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Random weights, converted; with columns after which no router's choice hangs on the rounding to float16."""
    source = write_checkpoint(tmp_path / "source", config(request.param))
    convert_checkpoint(source, tmp_path / "int8", outlier_rule="absmax")
    return tmp_path / "int8"


def test_every_family_is_here() -> None:
    run = {CONFIGS[name][0] for name in NAMES} | {"opt"}  # opt: test_gpu.py
    alike = {NEWER[name][0] for name in ALIKE & set(NEWER)}
    assert run | alike == set(FAMILIES)


INTERPRETED = [
    "llama, dynamic positions", "phi3, long positions, a window", "gemma2", "gemma3, scaled", "gptj", "bloom, six heads",
    "falcon, alibi, in sequence", "qwen2_moe, some layers", "starcoder2", "qwen3", "olmo2", "gpt_oss", "qwen3_5_text", "gemma4_text",
]  # fmt: skip
"""What kernels are called with that no other one here calls them with; the rest by formulas."""


@pytest.mark.parametrize("folder", INTERPRETED, indirect=True)
def test_prompts_then_steps(folder: Path) -> None:
    """Prompts of different length, one of them in parts, then a token of each together, as a CUDA graph would have it."""
    check_steps(folder, without_the_host)


@pytest.mark.usefixtures("formulas")
@pytest.mark.parametrize("folder", [n for n in NAMES if n not in INTERPRETED], indirect=True)
def test_prompts_then_steps_by_formulas(folder: Path) -> None:
    """That no step needs the host: ``test_decode``."""
    check_steps(folder)


def check_steps(folder: Path, watch: Any = nullcontext) -> None:
    logits = []
    for decoder in decoders(folder, "w8a16"):
        cache = decoder.cache(batch=2, capacity=16)
        logits.append(
            run(
                decoder,
                cache,
                [(4, 3), (2,)],
                watch if isinstance(cache, StaticCache) else nullcontext,
            )
        )
    check(*logits)


NARROW = [
    "llama, yarn",
    "gptj",
    "gemma2",
    "bloom, six heads",
    "phi3, long positions, a window",
    "qwen3_moe",
]
NARROW_BY_FORMULAS = ["deepseek_v3", "gemma4_text", "qwen3_next"]


@pytest.mark.parametrize("folder", NARROW, indirect=True)
def test_an_int8_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in 16 bits; prompts have it widened a head at a time."""
    monkeypatch.setattr(gpu_attention, "WIDENED_ON_GPU", 1)
    check_int8_cache(folder, without_the_host)


@pytest.mark.usefixtures("formulas")
@pytest.mark.parametrize("folder", NARROW_BY_FORMULAS, indirect=True)
def test_an_int8_cache_by_formulas(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_attention, "WIDENED_ON_GPU", 1)
    check_int8_cache(folder, nullcontext)


def check_int8_cache(folder: Path, watch: Any) -> None:
    gpu, cpu, wide = decoders(folder, "w8a16")
    prompts = [(4, 3), (2,)]
    check(
        run(
            gpu,
            gpu.backend.cache(gpu.config, batch=2, capacity=16, dtype=torch.int8),
            prompts,
            watch,
        ),
        run(cpu, cpu.backend.cache(cpu.config, batch=2, capacity=16, dtype=torch.int8), prompts),
        run(wide, wide.cache(batch=2, capacity=16), prompts),
    )


def test_the_watch_sees_the_host() -> None:
    x = torch.ones(2)
    for use in (
        x.sum().item,
        x.nonzero,
        lambda: x[x > 0],
        lambda: torch.tensor([1.0]),
        lambda: x.tolist(),
    ):
        with pytest.raises(AssertionError), without_the_host():
            use()


def run(
    decoder: Decoder, cache: Any, prompts: list[tuple[int, ...]], watch: Any = nullcontext
) -> Tensor:
    """Logits ``[1, all tokens, vocab]``; the step is within ``watch``."""
    ids, logits = tokens(2, 32), []
    for i, parts in enumerate(prompts):
        part = cache.sequence(i)
        for first, count in zip(accumulate(parts, initial=0), parts, strict=False):
            logits.append(decoder.forward(ids[i : i + 1, first : first + count], part))
    with watch():
        logits += decoder.forward(ids[:, -1:], cache).split(1)
    return torch.cat(logits, dim=1)


EIGHT_BITS = ["qwen2_moe, some layers", "phi", "phi3, long positions, a window", "gemma2", "bloom, six heads"]  # fmt: skip
"""Experts, parallel blocks, gate and up in one, norms around, interleaved heads."""


@pytest.mark.parametrize("folder", EIGHT_BITS, indirect=True)
def test_eight_bit_activations(folder: Path) -> None:
    check(*(decoder.forward(tokens(1, 4)) for decoder in decoders(folder, "w8a8")))


@pytest.mark.usefixtures("formulas")
@pytest.mark.parametrize("name", ["deepseek_v3", "gemma4_text", "qwen3_next", "gpt_oss"])
def test_sources_in_16_bits_by_formulas(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, config(name)))
    form, half = read_architecture(checkpoint.config, checkpoint.tensors), torch.float16
    gpu = Decoder(form, DeviceCheckpoint(checkpoint, form.config, half, CPU), half)
    cpu = Decoder(form, CheckpointWeights(checkpoint, half), half)
    wide = Decoder(form, CheckpointWeights(checkpoint, torch.float32), torch.float32)
    prompts = [(4, 3), (2,)]
    check(
        *(
            run(decoder, decoder.cache(batch=2, capacity=16), prompts)
            for decoder in (gpu, cpu, wide)
        )
    )
