"""Files on their way to a GPU, whose memory the CPU's stands for here: the same threads and pieces, nothing pinned."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from int8conv.errors import NotFoundError, TruncatedFileError
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.safetensors.stored import StoredTensor
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime import loader
from int8conv.runtime.backends.gpu.files import DeviceFiles, DeviceTensors
from int8conv.runtime.backends.gpu.staging import Piece, Staging
from int8conv.runtime.backends.gpu.weights import DeviceCheckpoint
from int8conv.runtime.models.architecture import read_architecture

from ....checkpoints import LLAMA, put_fp8, random_tensors, write_checkpoint
from ....cli.helpers import succeed

CPU = torch.device("cpu")


def whole(path: Path) -> tuple[torch.Tensor, Piece]:
    """Poisoned memory as large as a file, and the piece that fills it."""
    target = torch.full((path.stat().st_size,), 0xEE, dtype=torch.uint8)
    return target, Piece(0, torch.uint8, target)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(100_003))  # no multiple of anything
    return path


@pytest.mark.parametrize("readers", [1, 2, 5])
@pytest.mark.parametrize("stage_bytes", [8, 4096, 1 << 20])
def test_every_byte_arrives(file: Path, readers: int, stage_bytes: int) -> None:
    if stage_bytes == 8:
        file.write_bytes(file.read_bytes()[:1001])
    target, piece = whole(file)
    Staging(CPU, readers=readers, stage_bytes=stage_bytes).fill(LocalFile(file), [piece])
    assert target.numpy().tobytes() == file.read_bytes()


def test_the_stages_serve_another_file(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(os.urandom(10_001))
    staging = Staging(CPU, readers=3, stage_bytes=4096)
    for path in (file, other, file):
        target, piece = whole(path)
        staging.fill(LocalFile(path), [piece])
        assert target.numpy().tobytes() == path.read_bytes()


def test_nothing_to_do(file: Path) -> None:
    Staging(CPU).fill(LocalFile(file), [Piece(0, torch.float16, torch.empty(0))])


class Watched:
    """A file that tells how many threads read it at once."""

    name = "watched"

    def __init__(self) -> None:
        self.together = threading.Barrier(3)

    def size(self) -> int:
        return 3 * 4096

    def stamp(self) -> object:
        return None

    @contextmanager
    def open(self, until: int = 0) -> Iterator[Watched]:
        yield self

    def read_into(self, data: memoryview, offset: int) -> None:
        self.together.wait()
        data[:] = bytes([offset // 4096] * len(data))


def test_threads_read_at_once() -> None:
    """Each of three waits for the others."""
    target = torch.zeros(3 * 4096, dtype=torch.uint8)
    Staging(CPU, readers=3, stage_bytes=4096).fill(Watched(), [Piece(0, torch.uint8, target)])
    assert target.view(3, -1).unique(dim=1).flatten().tolist() == [0, 1, 2]


def test_a_file_that_became_shorter_is_an_error(file: Path) -> None:
    _, piece = whole(file)
    file.write_bytes(bytes(50_000))
    staging = Staging(CPU, readers=2, stage_bytes=4096)
    with pytest.raises(TruncatedFileError, match=f"{file.name}: the file was truncated"):
        staging.fill(LocalFile(file), [piece])
    file.unlink()
    with pytest.raises(NotFoundError):
        staging.fill(LocalFile(file), [piece])


def tensors_of(folder: Path) -> list[StoredTensor]:
    return list(open_checkpoint(folder).tensors.values())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16])
def test_a_source_arrives_in_the_dtype_wanted(
    tmp_path: Path, stored: torch.dtype, wanted: torch.dtype
) -> None:
    """In one buffer a shard, of the converted numbers' size."""
    folder = write_checkpoint(tmp_path / "source", dtype=stored, shards=2)
    tensors = tensors_of(folder)
    files = DeviceTensors(tensors, wanted, CPU, Staging(CPU, readers=2, stage_bytes=4096))
    expected = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    storages: dict[int, int] = {}
    for tensor in tensors:
        found = files.tensor(tensor)
        assert torch.equal(found, expected[tensor.name].to(wanted)), tensor.name
        storage = found.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    assert len(storages) == 2
    padded = sum(-(-t.numel() * 2 // 256) * 256 for t in expected.values())
    assert sum(storages.values()) == padded
    assert files.loading.nbytes == sum(t.nbytes for t in tensors)
    assert files.loading.seconds > 0
    assert files.loading.speed == files.loading.nbytes / files.loading.seconds


def test_dtypes_mixed_in_a_file_and_one_that_nobody_asks_for(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    tensors["some.mask"] = torch.ones(7, dtype=torch.bool)
    folder = write_checkpoint(tmp_path / "source", tensors=tensors)
    files = DeviceTensors(tensors_of(folder), torch.float16, CPU)
    for tensor in tensors_of(folder):
        if tensor.name != "some.mask":
            assert torch.equal(files.tensor(tensor), tensors[tensor.name].half())


def test_a_tensor_at_an_odd_offset(tmp_path: Path) -> None:
    """Legal in a foreign file."""
    path = tmp_path / "odd"
    numbers = torch.arange(5, dtype=torch.float16)
    path.write_bytes(b"x" + numbers.numpy().tobytes())
    stored = StoredTensor("odd", "F16", (5,), LocalFile(path), 1, 10)
    assert torch.equal(DeviceTensors([stored], torch.float16, CPU).tensor(stored), numbers)
    assert torch.equal(DeviceFiles(CPU).tensor(stored), numbers)


def test_a_shard_is_read_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[Any] = []
    fill = Staging.fill
    monkeypatch.setattr(Staging, "fill", lambda self, file, pieces: filled.append(file) or fill(self, file, pieces))  # type: ignore[func-returns-value]  # fmt: skip
    checkpoint = open_checkpoint(source)
    form = read_architecture(checkpoint.config, checkpoint.tensors)
    weights = DeviceCheckpoint(checkpoint, form.config, torch.float16, CPU)
    for module in form.modules:
        weights.tensor(module)
    assert weights.files.finish().nbytes == checkpoint.nbytes
    assert len(filled) == 1


def test_fp8_is_decoded_before(source: Path) -> None:
    decoded = put_fp8(source, "block")
    checkpoint = open_checkpoint(source)
    form = read_architecture(checkpoint.config, checkpoint.tensors)
    weights = DeviceCheckpoint(checkpoint, form.config, torch.bfloat16, CPU)
    module = next(m for m in form.modules if m.kind == "attention")
    found = weights.tensor(module)
    assert torch.equal(found, decoded[f"{module.path}.weight"].bfloat16())


class FakeStream:
    """Takes orders, and does nothing until someone waits."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log = log
        self.name = name

    def __call__(self, *_: object) -> FakeStream:
        return self

    def __enter__(self) -> None:
        self.log.append("on stream")

    def __exit__(self, *_: object) -> None:
        pass

    def record(self) -> None:
        self.log.append(f"record {self.name}")

    def synchronize(self) -> None:
        self.log.append(f"wait for {self.name}")


def test_a_stage_is_read_into_once_its_copy_is_done(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of what a thread tells a GPU, of which only the names are there."""
    log: list[str] = []
    events = iter("ABCD")
    empty, reads = torch.empty, []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(log, "stream"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: FakeStream(log, next(events)))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream(log, "before"))
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory, **k: reads.append(pin_memory) or empty(*a, **k))  # fmt: skip
    target = torch.zeros(3 * 4096, dtype=torch.uint8)
    staging = Staging(torch.device("cuda"), readers=1, stage_bytes=4096)
    staging.fill(LocalFile(file), [Piece(0, torch.uint8, target)])
    assert reads == [True, True]
    copies = [
        step for name in "BAB" for step in (f"wait for {name}", "on stream", f"record {name}")
    ]
    assert log == ["wait for before", *copies, "wait for stream"]
    assert target.numpy().tobytes() == file.read_bytes()[: 3 * 4096]


@pytest.mark.usefixtures("gpu_of_the_cpu")
def test_a_model_says_what_went_to_the_gpu(example: Path, example_int8: Path) -> None:
    for folder in (example, example_int8):
        loading = loader.load(folder, device="cuda").loading
        assert loading is not None
        files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        headers = 1 << 16
        assert files - headers < loading.nbytes <= files


@pytest.mark.usefixtures("gpu_of_the_cpu")
def test_generate_prints_how_fast(example_int8: Path) -> None:
    options = ("-p", "A", "-n", 0, "--device", "cuda", "-v")
    told = succeed("generate", example_int8, *options).stderr
    assert re.fullmatch(
        r"int8conv: loaded in [\d.]+ s: 9\.2 MB to the GPU in [\d.]+ s, .+B/s\n", told
    )
    options = ("-p", "A", "-n", 0, "--verbose")
    assert re.fullmatch(
        r"int8conv: loaded in [\d.]+ s\n", succeed("generate", example_int8, *options).stderr
    )
