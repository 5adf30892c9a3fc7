"""Carrying out a plan block by block: the result must not depend on blocks, workers or shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor

from int8conv.convert.plan import KeepTask, QuantizeTask, Task
from int8conv.convert.stream import TaskResult, Workers, run_tasks
from int8conv.errors import (
    HalfOverflowError,
    Int8convError,
    NonFiniteWeightError,
    NotFoundError,
    TruncatedFileError,
)
from int8conv.formats.int8.layout import ShardLayout, TensorSpec, plan_layout
from int8conv.formats.safetensors.header import read_header
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.safetensors.stored import StoredTensor
from int8conv.formats.source.matrix import Matrix

NO_COLUMNS = np.empty(0, np.int32)
COLUMNS = np.array([0, 3, 5], np.int32)
NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


def half_of(dtype: torch.dtype) -> str:
    """What a source of that dtype is kept in."""
    return "F16" if dtype == torch.float32 else NAMES[dtype]


def stored(folder: Path, tensors: dict[str, Tensor]) -> dict[str, StoredTensor]:
    path = folder / "in.safetensors"
    save_file(tensors, path)
    header = read_header(path)
    return {
        t.name: StoredTensor(t.name, t.dtype, t.shape, LocalFile(path), header.payload_offset + t.begin, t.nbytes)
        for t in header.tensors.values()
    }  # fmt: skip


def layouts_of(tasks: list[Task], max_shard_bytes: int = 1 << 30) -> list[ShardLayout]:
    units = []
    for task in tasks:
        if isinstance(task, KeepTask):
            units.append(((TensorSpec(task.source.name, task.dtype, task.source.shape),),))
            continue
        (out, in_features), k = task.source.shape, len(task.columns)
        specs = [("weight", "I8", (out, in_features, 1)), ("weight_scale", "F32", (out,))]
        if k:
            specs += [("outlier_index", "I32", (k,)), ("outlier_weight", task.half, (out, k))]
        units += [((TensorSpec(f"{task.path}.{n}", d, s),),) for n, d, s in specs]
    return plan_layout(units, max_shard_bytes=max_shard_bytes)


def run(
    folder: Path, tasks: list[Task], jobs: int = 1, block: int = 1 << 18
) -> tuple[list[TaskResult], dict[str, bytes]]:
    """Results, and the bytes of each tensor written."""
    folder.mkdir()
    layouts = layouts_of(tasks)
    results = run_tasks(tasks, layouts, folder, Workers(jobs, block), progress=lambda nbytes: None)
    written = {}
    for layout in layouts:
        data = (folder / layout.name).read_bytes()
        assert len(data) == layout.nbytes
        for info in read_header(folder / layout.name).tensors.values():
            start = len(layout.header)
            written[info.name] = data[start + info.begin : start + info.end]
    return results, written


def keep_task(source: StoredTensor, half: str = "F16") -> Task:
    return KeepTask(source.name, source, half, "norm")


def quantize_task(
    source: StoredTensor,
    columns: npt.NDArray[np.int32] = COLUMNS,
    half: str = "F16",
    path: str = "t",
) -> Task:
    return QuantizeTask(path, Matrix(source), columns, half, "ffn")


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", NAMES, ids=str)
@pytest.mark.parametrize("block", [1, 7, 24, 1 << 18])
def test_blocks_do_not_change_the_bytes(tmp_path: Path, dtype: torch.dtype, block: int) -> None:
    """Blocks of less than a row, of one row, of some, of all."""
    source = stored(tmp_path, {"p.weight": random((13, 8), dtype), "norm": random((29,), dtype)})
    half = half_of(dtype)
    tasks: list[Task] = [
        quantize_task(source["p.weight"], COLUMNS, half, "p"),
        keep_task(source["norm"], half),
    ]
    expected = run(tmp_path / "whole", tasks)
    assert run(tmp_path / "blocks", tasks, block=block) == expected


def test_what_a_quantized_linear_becomes(tmp_path: Path) -> None:
    weight = random((13, 8), torch.float16)
    source = stored(tmp_path, {"p.weight": weight})["p.weight"]
    (result,), written = run(tmp_path / "out", [quantize_task(source, COLUMNS, "F16", "p")])

    inner = weight.double()
    inner[:, COLUMNS.tolist()] = 0
    scale = (inner.abs().amax(dim=1).float() / 127).clamp_min(2.0**-126)
    codes = (inner.float() / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    assert written["p.weight"] == codes.numpy().tobytes()
    assert written["p.weight_scale"] == scale.numpy().tobytes()
    assert written["p.outlier_index"] == COLUMNS.astype("<i4").tobytes()
    assert written["p.outlier_weight"] == weight[:, COLUMNS.tolist()].numpy().tobytes()
    assert result.source_checksum == xxhash.xxh3_128_hexdigest(weight.numpy().tobytes())
    own = {name: data for name, data in written.items() if name.startswith("p.")}
    assert result.checksums == {n: xxhash.xxh3_128_hexdigest(data) for n, data in own.items()}
    assert result.rounded == 0


@pytest.mark.parametrize("shape", [(), (1,), (0,), (5,), (0, 4), (4, 0), (3, 2, 5), (1, 1)])
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_tensors_of_any_shape_are_kept(
    tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = random(shape, dtype)
    source = stored(tmp_path, {"t": tensor})["t"]
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    (result,), written = run(tmp_path / "out", [keep_task(source, NAMES[half])])
    rounded = tensor.to(half)
    assert written["t"] == rounded.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert result.rounded == int((rounded.float() != tensor.float()).sum())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", [2, 3])
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_a_value_that_is_not_finite_in_a_quantized_weight(
    tmp_path: Path, bad: float, column: int, dtype: torch.dtype
) -> None:
    weight = random((13, 8), dtype)
    weight[11, column] = bad
    source = stored(tmp_path, {"p.weight": weight})["p.weight"]
    with pytest.raises(NonFiniteWeightError, match="row 11") as caught:
        run(tmp_path / "out", [quantize_task(source, COLUMNS, half_of(dtype), "p")], block=24)
    assert (caught.value.tensor, caught.value.file) == ("p.weight", str(source.file))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shape", [(40,), (40, 3)])
def test_a_value_that_is_not_finite_in_a_kept_tensor(
    tmp_path: Path, bad: float, shape: tuple[int, ...]
) -> None:
    tensor = random(shape, torch.bfloat16)
    tensor[37] = bad
    source = stored(tmp_path, {"t": tensor})["t"]
    with pytest.raises(NonFiniteWeightError, match="row 37") as caught:
        run(tmp_path / "out", [keep_task(source, "BF16")], block=6)
    assert caught.value.tensor == "t"


@pytest.mark.parametrize("make_task", [keep_task, quantize_task])
@pytest.mark.parametrize("value", [65520.0, -1e30])
def test_overflow_names_the_row(
    tmp_path: Path,
    make_task: Callable[[StoredTensor], Task],
    value: float,
) -> None:
    weight = random((13, 8), torch.float32)
    weight[7, 5] = value
    source = stored(tmp_path, {"t": weight})["t"]
    with pytest.raises(HalfOverflowError, match=r"row 7 .* F16 .*bfloat16") as caught:
        run(tmp_path / "out", [make_task(source)], block=24)
    assert caught.value.tensor == "t"


def test_a_large_value_outside_the_outlier_columns_needs_no_16_bits(tmp_path: Path) -> None:
    weight = random((4, 8), torch.float32)
    weight[2, 4] = 1e30
    source = stored(tmp_path, {"t": weight})["t"]
    _, written = run(tmp_path / "out", [quantize_task(source, COLUMNS, "F16", "t")])
    assert np.frombuffer(written["t.weight"], np.int8).reshape(4, 8)[2].tolist() == [0] * 4 + [127, 0, 0, 0]  # fmt: skip


def test_overflow_of_bfloat16_has_no_other_type_to_offer(tmp_path: Path) -> None:
    source = stored(tmp_path, {"t": torch.tensor([[1.0], [3.4e38]])})["t"]
    with pytest.raises(HalfOverflowError, match=r"row 1 .* BF16$"):
        run(tmp_path / "out", [keep_task(source, "BF16")])


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_results_come_in_the_order_of_the_tasks(tmp_path: Path, jobs: int) -> None:
    tensors = {f"t{i}": random((1 + 37 * i % 11, 5), torch.float16, seed=i) for i in range(12)}
    sources = stored(tmp_path, tensors)
    results, written = run(tmp_path / "out", [keep_task(sources[n], "F16") for n in tensors], jobs)
    assert [list(result.checksums) for result in results] == [[name] for name in tensors]
    for name, tensor in tensors.items():
        assert written[name] == tensor.numpy().tobytes()


def test_progress_adds_up(tmp_path: Path) -> None:
    sources = stored(
        tmp_path, {"a": random((9, 8), torch.float16), "b": random((7,), torch.float32)}
    )
    tasks: list[Task] = [
        quantize_task(sources["a"], NO_COLUMNS, "F16", "a"),
        keep_task(sources["b"], "F16"),
    ]
    told: list[int] = []
    (tmp_path / "out").mkdir()
    run_tasks(tasks, layouts_of(tasks), tmp_path / "out", Workers(2, 16), progress=told.append)
    assert sum(told) == 9 * 8 * 2 + 7 * 4
    assert len(told) == 5 + 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda path: path.unlink(), NotFoundError),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), TruncatedFileError),
        (lambda path: (path.unlink(), path.mkdir()), NotFoundError),
    ],
    ids=["removed", "shortened", "a folder"],
)
def test_a_source_that_changes_while_it_is_read(
    tmp_path: Path, change: Callable[[Path], object], error: type[Int8convError]
) -> None:
    source = stored(tmp_path, {"t": random((5, 8), torch.float16)})["t"]
    change(tmp_path / source.file.name)
    with pytest.raises(error) as caught:
        run(tmp_path / "out", [keep_task(source, "F16")])
    assert caught.value.file == str(source.file)
