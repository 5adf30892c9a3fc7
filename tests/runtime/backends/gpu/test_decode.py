"""Captured steps, with a stand-in for CUDA graphs: a replay does what the captured kernels do, and nothing that the host did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu.calls import META, cache_of, prompt_of, step_of
from benchmarks.gpu.random_model import RandomWeights
from int8conv.convert.converter import convert_checkpoint
from int8conv.kernels.gpu import attention, skinny, workspace
from int8conv.runtime.backends.gpu.decode import DecodeSteps
from int8conv.runtime.decoder.decoder import Decoder
from int8conv.runtime.generate.session import Session
from int8conv.runtime.models.architecture import read_architecture

from ....checkpoints import LLAMA, write_checkpoint
from .rehearsal import decoders, device_cache
from .test_families import NAMES
from .test_families import config as family_config

pytestmark = pytest.mark.usefixtures("few_programs")


class Graphs:
    """Of ``torch.cuda``, what capturing takes."""

    def __init__(self) -> None:
        self.captured = 0
        self.steps: Any = None
        self.CUDAGraph = lambda: SimpleNamespace(replay=self._replay)
        self.devices: set[object] = set()
        """On which streams were made or looked for."""
        self.current_stream = self.Stream
        self.stream = lambda stream: nullcontext()

    def Stream(self, device: object) -> SimpleNamespace:
        self.devices.add(device)
        return SimpleNamespace(wait_stream=lambda other: None)

    @contextmanager
    def graph(self, graph: Any, *, stream: object) -> Iterator[None]:
        """Kernels that are captured do not run."""
        self.captured += 1
        cache, counters = self.steps.cache, self.steps.counters
        kept = [cache.lengths, *(c.counts for c in counters.values())]
        kept += [part for state in cache.states for part in state.parts]
        before = [each.clone() for each in kept]
        yield
        for now, then in zip(kept, before, strict=True):
            now.copy_(then)

    def _replay(self) -> None:
        length = self.steps.cache.length
        self.steps._logits.copy_(self.steps._run())
        self.steps.cache.length = length


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    graphs = Graphs()
    monkeypatch.setattr(torch, "cuda", graphs)
    return graphs


@pytest.fixture
def decoder(tmp_path: Path) -> Any:
    source = write_checkpoint(tmp_path / "source", LLAMA | {"num_hidden_layers": 1})
    convert_checkpoint(source, tmp_path / "int8", max_outliers=0)
    return decoders(tmp_path / "int8", "w8a8")[0]


def captured(decoder: Any, cache: Any, graphs: Graphs) -> DecodeSteps:
    steps = graphs.steps = DecodeSteps(decoder, cache, decoder.backend.counters)
    steps._captured = True
    return steps


@torch.inference_mode()
def test_capturing_leaves_no_trace(decoder: Any, graphs: Graphs) -> None:
    """Logits, lengths and the fallback's counts are those of steps that just run."""
    counters = decoder.backend.counters
    assert counters
    found = []
    for capture in (False, True):
        for counter in counters.values():
            counter.counts.zero_()
        cache = device_cache(decoder, 2, 8)
        step = (
            captured(decoder, cache, graphs)
            if capture
            else DecodeSteps(decoder, cache, decoder.backend.counters)
        )
        logits = [step(torch.tensor([[token], [token + 1]])).clone() for token in (3, 9, 4)]
        counts = [counter.counts.clone() for counter in counters.values()]
        found.append((torch.stack(logits), torch.stack([c[:2] for c in counts]), cache.lengths, cache.length))  # fmt: skip
    plain, replayed = found
    assert graphs.captured == 1
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], replayed[:3], strict=True))
    assert plain[3] == replayed[3] == 3


@torch.inference_mode()
def test_capturing_leaves_recurrent_states_as_they_were(tmp_path: Path, graphs: Graphs) -> None:
    """Unlike keys and values, what the step before a capture does to them is not overwritten."""
    source = write_checkpoint(tmp_path / "source", family_config("qwen3_5_text"))
    convert_checkpoint(source, tmp_path / "int8", max_outliers=0)
    decoder: Any = decoders(tmp_path / "int8", "w8a16")[0]
    found = []
    for capture in (False, True):
        cache = decoder.cache(batch=2, capacity=8)
        decoder.forward(torch.tensor([[5, 6], [7, 8]]), cache)
        step = captured(decoder, cache, graphs) if capture else DecodeSteps(decoder, cache, {})
        logits = [step(torch.tensor([[token], [token + 1]])).clone() for token in (3, 9)]
        found.append([*logits, *cache.states[0].parts])
    assert graphs.captured == 1
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_a_cache_that_grew_is_captured_anew(decoder: Any, graphs: Graphs, dtype: torch.dtype) -> None:  # fmt: skip
    cache = device_cache(decoder, 1, 4, dtype)
    step = captured(decoder, cache, graphs)
    expected = DecodeSteps(decoder, device_cache(decoder, 1, 16, dtype), {})
    for position, token in enumerate((5, 6, 7, 8)):
        if position == 2:
            cache.enlarge(16)
        ids = torch.tensor([[token]])
        assert torch.equal(step(ids), expected(ids))
    assert graphs.captured == 2


def test_a_session_keeps_its_steps(decoder: Any, graphs: Graphs) -> None:
    session = Session(decoder)
    cache = session.cache_for([1, 2, 3], 4)
    steps = session.steps
    assert session.cache_for([1, 2, 3, 4], 30) is cache
    assert session.steps is steps


@torch.inference_mode()
def test_a_captured_step_uses_its_own_workspace_on_its_own_device(tmp_path: Path, graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    source = write_checkpoint(tmp_path / "source", LLAMA | {"num_hidden_layers": 1})
    convert_checkpoint(source, tmp_path / "int8", max_outliers=0)
    decoder: Any = decoders(tmp_path / "int8", "w8a16")[0]
    used: list[workspace.Workspace | None] = []

    def take(*arguments: Any) -> Any:
        used.append(workspace._used.get())
        return workspace.take(*arguments)

    for kernel in (attention, skinny):
        monkeypatch.setattr(kernel, "take", take)
    monkeypatch.setattr(skinny, "MOST_TOKENS", 0)  # gemv takes none
    steps = [captured(decoder, device_cache(decoder, 2, 8), graphs) for _ in range(2)]
    for step in steps:
        graphs.steps = step
        used.clear()
        step._capture()
        assert set(used) == {step._workspace}
    assert graphs.devices == {torch.device("cpu")}
    assert steps[0]._workspace is not steps[1]._workspace


LAUNCHES = {
    "llama, yarn": (11, 7), "llama, dynamic positions": (11, 7), "mistral, a window, wide heads": (11, 7),
    "qwen2, windows in later layers, tied": (11, 7), "qwen3": (15, 11), "phi": (13, 7), "phi3, long positions, a window": (11, 7),
    "gemma": (11, 8), "gemma2": (15, 19), "gemma2, low caps": (15, 19), "gemma3, scaled": (19, 20), "olmo2": (19, 15), "olmoe": (17, 25),
    "granite, multipliers": (11, 17), "cohere": (11, 7), "stablelm, parallel, biases": (11, 7), "starcoder2": (13, 7), "gpt2": (13, 10),
    "gptj": (13, 7), "gpt_neox": (13, 13), "gpt_neox, in sequence, no biases": (13, 13), "bloom, six heads": (14, 13),
    "falcon, one key head": (13, 7), "falcon, groups": (13, 13), "falcon, alibi, in sequence": (13, 13), "mixtral": (13, 29),
    "qwen2_moe, some layers": (14, 22), "qwen3_moe, every other layer": (16, 22), "ministral3": (11, 23), "smollm3": (11, 7),
    "jais2": (13, 7), "hunyuan_v1_dense": (15, 51), "glm4_moe": (18, 33), "qwen3_next": (19, 107), "qwen3_5_text": (13, 70),
    "falcon_h1, a norm, multipliers": (19, 113), "granitemoehybrid": (17, 82), "nemotron_h": (19, 117), "lfm2": (13, 21),
    "deepseek_v2, plain queries, wide values": (14, 152), "deepseek_v3": (16, 179), "gemma4_text": (50, 55),
    "gemma4_text, experts, own keys, biases": (46, 95), "gemma3n_text": (66, 214), "apertus": (15, 35), "phimoe": (13, 65),
    "gpt_oss": (13, 51),
}  # fmt: skip
"""Of a step through two layers (Gemma 3n and 4, Nemotron-H: all of theirs): Triton's kernels, PyTorch's operators."""


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_step_can_be_captured(name: str) -> None:
    """On meta tensors, where there is nothing to read: it has no tensor of the host and no shape that depends on values, nothing that
    it allocates outlives it but the logits, and later steps launch the same with the same arguments, so that what a graph freezes
    does not change. Launches of a prompt are counted as well."""
    form = read_architecture(family_config(name), ())
    weights = RandomWeights(form, torch.float16, META, 0.05)
    decoder = Decoder(form, weights, torch.float16)
    assert not decoder.needs_host_sync
    cache = cache_of(decoder, 2, 16)
    step, later = (step_of(decoder, cache, 90, context) for context in (5, 9))
    assert step.frozen() == later.frozen()
    assert (len(step.launches), len(step.operators)) == LAUNCHES[name]
    prompt = prompt_of(decoder, 90, tokens=5)
    assert (len(prompt.launches), len(prompt.operators)) == PROMPTS[name]


def test_every_family_has_been_captured() -> None:
    assert set(LAUNCHES) == set(PROMPTS) == set(NAMES)


PROMPTS = {
    "llama, yarn": (15, 11), "llama, dynamic positions": (15, 23), "mistral, a window, wide heads": (15, 27),
    "qwen2, windows in later layers, tied": (15, 19), "qwen3": (19, 15), "phi": (17, 11), "phi3, long positions, a window": (15, 41),
    "gemma": (15, 12), "gemma2": (19, 57), "gemma2, low caps": (19, 57), "gemma3, scaled": (23, 32), "olmo2": (19, 19), "olmoe": (39, 23),
    "granite, multipliers": (15, 21), "cohere": (15, 11), "stablelm, parallel, biases": (15, 11), "starcoder2": (17, 11), "gpt2": (17, 14),
    "gptj": (17, 11), "gpt_neox": (17, 17), "gpt_neox, in sequence, no biases": (17, 17), "bloom, six heads": (18, 45),
    "falcon, one key head": (17, 11), "falcon, groups": (17, 17), "falcon, alibi, in sequence": (17, 45), "mixtral": (27, 27),
    "qwen2_moe, some layers": (27, 23), "qwen3_moe, every other layer": (29, 23), "ministral3": (15, 27), "smollm3": (15, 11),
    "jais2": (17, 11), "hunyuan_v1_dense": (19, 55), "glm4_moe": (35, 34), "qwen3_next": (40, 112), "qwen3_5_text": (16, 81),
    "falcon_h1, a norm, multipliers": (23, 125), "granitemoehybrid": (34, 82), "nemotron_h": (21, 127), "lfm2": (16, 21),
    "deepseek_v2, plain queries, wide values": (29, 127), "deepseek_v3": (31, 154), "gemma4_text": (54, 59),
    "gemma4_text, experts, own keys, biases": (82, 92), "gemma3n_text": (70, 218), "apertus": (19, 39), "phimoe": (31, 93),
    "gpt_oss": (35, 145),
}  # fmt: skip
"""Of a prompt of five tokens through those layers, all experts of a mixture: Triton's kernels, PyTorch's operators."""
