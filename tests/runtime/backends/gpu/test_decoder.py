"""The whole runtime with the kernels for GPUs, in Triton's interpreter, against the CPU's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import int8conv
from int8conv.convert.converter import convert_checkpoint
from int8conv.errors import ArgumentError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.kernels.dispatch import Mode
from int8conv.runtime.backends.gpu.cache import DeviceCache
from int8conv.runtime.backends.gpu.files import DeviceFiles
from int8conv.runtime.backends.gpu.staging import Staging
from int8conv.runtime.backends.gpu.weights import DeviceCheckpoint
from int8conv.runtime.decoder.decoder import Decoder
from int8conv.runtime.decoder.quantized_cache import QuantizedCache
from int8conv.runtime.generate.generation import Continuation, continue_all
from int8conv.runtime.generate.sampling import Sampling
from int8conv.runtime.measure.footprint import predict_footprint
from int8conv.runtime.weights.weights import CheckpointWeights

from ....checkpoints import LLAMA, OPT, write_checkpoint
from ...reference import NoText
from .rehearsal import CPU, architecture, check, cpu_cache, decoders, device_cache, error, tokens

pytestmark = pytest.mark.usefixtures("few_programs")
FAMILIES = {
    "llama": LLAMA,
    "opt": OPT,
    "opt, norms after": {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 32},
}


@pytest.fixture(scope="module", params=FAMILIES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("gpu") / "source", FAMILIES[request.param])


@pytest.fixture(scope="module")
def folder(source: Path) -> Path:
    convert_checkpoint(source, source.parent / "int8")
    return source.parent / "int8"


@pytest.mark.parametrize("mode", ["w8a16", "w8a8"])
def test_logits_without_a_cache(folder: Path, mode: Mode) -> None:
    ids = tokens(2, 9)
    check(*(decoder.forward(ids) for decoder in decoders(folder, mode)))


@pytest.mark.parametrize("mode", ["w8a16", "w8a8"])
def test_prompt_in_chunks_then_token_by_token(folder: Path, mode: Mode) -> None:
    gpu, cpu, wide = decoders(folder, mode)
    ids = tokens(2, 9)
    cache = device_cache(gpu, 2, 12)
    logits = []
    for decoder, filled in (
        (gpu, cache),
        (cpu, cpu_cache(cpu, 2, 12)),
        (wide, cpu_cache(wide, 2, 12)),
    ):
        parts = ids.split([4, 3, 1, 1], dim=1)
        logits.append(torch.cat([decoder.forward(part, filled) for part in parts], dim=1))
    check(*logits)
    assert cache.lengths.tolist() == [9, 9]


def test_sequences_of_different_length_in_a_batch(folder: Path) -> None:
    gpu, cpu, wide = decoders(folder, "w8a16")
    cache = device_cache(gpu, 2, 12)
    prompts = [tokens(1, 7), tokens(1, 3)]
    for i, prompt in enumerate(prompts):
        gpu.forward(prompt, cache.sequence(i))
    assert cache.lengths.tolist() == [7, 3]
    step = torch.tensor([[5], [6]])
    together = gpu.forward(step, cache)
    for i, prompt in enumerate(prompts):
        whole = torch.cat([prompt, step[i : i + 1]], dim=1)
        check(together[i], cpu.forward(whole)[0, -1:], wide.forward(whole)[0, -1:])


def test_a_source_in_16_bits(source: Path) -> None:
    form, half = architecture(source), torch.float16
    checkpoint = open_checkpoint(source)
    gpu = Decoder(form, DeviceCheckpoint(checkpoint, form.config, half, CPU), half)
    cpu = Decoder(form, CheckpointWeights(checkpoint, half), half)
    wide = Decoder(form, CheckpointWeights(checkpoint, torch.float32), torch.float32)
    check(*(decoder.forward(tokens(2, 6)) for decoder in (gpu, cpu, wide)))


def test_files_are_views_of_one_buffer(folder: Path) -> None:
    """Also through a ring that is smaller than the file."""
    converted = open_converted(folder)
    files = DeviceFiles(CPU, Staging(CPU, readers=2, stage_bytes=4096))
    linears = list(converted.linears.values())
    for linear in linears:
        codes = files.tensor(linear.weight)
        path = linear.weight.file.path  # type: ignore[attr-defined]
        data = path.read_bytes()[linear.weight.offset :][: linear.weight.nbytes]
        assert codes.flatten().numpy().tobytes() == data
    shards = {linear.weight.file for linear in linears}
    assert len({files.tensor(x.weight).untyped_storage().data_ptr() for x in linears}) == len(shards)  # fmt: skip
    assert files.loading.nbytes == sum(shard.size() for shard in shards)


def test_generates_as_the_cpu_does(folder: Path) -> None:
    """Prompts of different length together, then steps; one ends before the others. The likeliest token of each step is the
    CPU path's, or as good as it."""
    gpu, _, wide = decoders(folder, "w8a16")
    continuations = [
        Continuation(tokens(1, length)[0].tolist(), limit, Sampling(), end_tokens=frozenset(), detokenizer=NoText())
        for length, limit in ((5, 4), (3, 2), (7, 4))
    ]  # fmt: skip
    continue_all(gpu, continuations, device_cache(gpu, 3, 12))
    for each in continuations:
        prompt, ids = each.prompt, each.result().token_ids
        assert len(ids) == each.limit
        logits = wide.forward(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert (logits.amax(1) - chosen <= 0.01 * logits.abs().amax()).all()


@pytest.mark.usefixtures("gpu_of_the_cpu")
def test_an_int8_cache_as_it_is_loaded(folder: Path) -> None:
    """Asked for by name, it has the bytes that the footprint says, and its continuation is the CPU's."""
    gpu, cpu = (
        int8conv.load(folder, device=device, dtype="float16", kv_cache="int8", mode="w8a16").decoder
        for device in ("cuda", "cpu")
    )
    cache, expected = (d.cache(batch=2, capacity=32) for d in (gpu, cpu))
    assert isinstance(cache, DeviceCache)
    assert isinstance(expected, QuantizedCache)
    predicted = predict_footprint(folder, context=32, batch=2, device="cuda", kv_cache="int8")
    assert cache.nbytes == expected.nbytes == predicted.kv_cache
    parts = tokens(2, 10).split([8, 1, 1], dim=1)
    found = [gpu.forward(part, cache) for part in parts]
    wanted = [cpu.forward(part, expected) for part in parts]
    assert error(torch.cat(found, 1), torch.cat(wanted, 1)) < 0.01


def test_no_gpu_is_one_clear_line(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ArgumentError, match="PyTorch finds no GPU here"):
        int8conv.load(folder, device="cuda")
