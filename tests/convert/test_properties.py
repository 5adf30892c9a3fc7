"""Whole conversions of random checkpoints: what must hold whatever the shapes, dtypes, values and sharding are."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from int8conv.convert import converter
from int8conv.convert.outliers.rule import OutlierChoice
from int8conv.formats.int8.folder import ConvertedFolder, open_converted
from int8conv.formats.int8.verify import verify
from int8conv.runtime.weights.mapping import read_tensor

from ..checkpoints import write_checkpoint

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SPECIAL = [0.0, -0.0, 2.0**-24, -(2.0**-24), 6e-5, 65504.0, -65504.0, 1.0, 0.3]
"""Of float16: zeros, subnormals, the smallest normal number, the largest ones."""


@dataclass
class Case:
    """A checkpoint of a family that nobody knows, and what to do with it."""

    tensors: dict[str, Tensor]
    choices: dict[str, OutlierChoice]
    shards: tuple[int, int]
    """Of the source, which is written twice."""
    jobs: tuple[int, int]
    max_memory: int
    max_shard_bytes: int


def values(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Normal values of any magnitude, with rows of zeros and some special values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    data = np.array(rng.standard_normal(shape, np.float32) * 2.0 ** draw(st.integers(-20, 8)))
    if len(shape) == 2 and shape[0]:
        data[rng.random(shape[0]) < draw(st.sampled_from([0, 0.2, 1]))] = 0
    spots = np.array(rng.random(shape)) < draw(st.sampled_from([0, 0.05]))
    data[spots] = rng.choice(SPECIAL, int(spots.sum()))
    return torch.from_numpy(data).to(dtype)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    tensors, choices = {}, {}
    side = st.sampled_from([0, 1, 2, 15, 16, 17, 31, 64, 100])
    for number in range(draw(st.integers(1, 4))):
        path, dtype = f"blocks.{number}.mixer", draw(st.sampled_from(DTYPES))
        out, columns = draw(side), draw(side)
        tensors[f"{path}.weight"] = values(draw, (out, columns), dtype)
        if draw(st.booleans()):
            tensors[f"{path}.bias"] = values(draw, (out,), dtype)
        if columns >= 16 and draw(st.booleans()):
            index = draw(st.permutations(range(columns)))[: columns // 16 * 16]
            choices[path] = OutlierChoice(np.array(sorted(index), np.int32), 6.0)
    for number in range(draw(st.integers(0, 3))):
        shape = tuple(draw(st.lists(st.sampled_from([0, 1, 3, 8]), max_size=3)))
        tensors[f"kept.{number}"] = values(draw, shape, draw(st.sampled_from(DTYPES)))
    counts = st.integers(1, 3)
    return Case(
        tensors,
        choices,
        (draw(counts), draw(counts)),
        (draw(counts), draw(counts)),
        draw(st.integers(84_004_000, 200_000_000)),
        draw(st.integers(1, 50_000)),
    )


def convert(source: Path, out: Path, case: Case, **options: Any) -> None:
    """With the case's outlier columns in place of calibrated ones."""
    chosen = mock.patch.object(converter, "choose", lambda *a: (case.choices, None, ()))
    with chosen:
        converter.convert_checkpoint(
            source, out, quantize=[r"mixer$"] if needs_asking(case) else [],
            max_shard_bytes=case.max_shard_bytes, **options,
        )  # fmt: skip


def needs_asking(case: Case) -> bool:
    """Small matrices stay in 16 bits by default."""
    weights = [t for name, t in case.tensors.items() if name.endswith("mixer.weight")]
    return any(min(weight.shape) < 32 for weight in weights)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stays_wide(name: str, tensor: torch.Tensor) -> bool:
    """Float32 that is no matrix: rounded are weights with two axes, and anything with three, that are longer than 1."""
    long_axes = sum(length > 1 for length in tensor.shape)
    return tensor.dtype == torch.float32 and long_axes < (2 if name.endswith(".weight") else 3)


def check(case: Case, converted: ConvertedFolder) -> None:
    verify(converted)
    stored = converted.checkpoint.tensors
    for name, tensor in case.tensors.items():
        path = name.removesuffix(".weight")
        half = tensor.half() if tensor.dtype == torch.float32 else tensor
        if path not in converted.linears:
            found, expected = (
                read_tensor(stored[name]),
                tensor if stays_wide(name, tensor) else half,
            )
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            bits = torch.int32 if found.dtype == torch.float32 else torch.int16
            assert torch.equal(found.view(bits), expected.contiguous().view(bits))
            continue
        linear, wide = converted.linears[path], tensor.double()
        codes = read_tensor(linear.weight).squeeze(-1).double()
        scale = read_tensor(linear.scale).double()[:, None]
        error = (codes * scale - wide).abs()
        if linear.outlier_weight is not None:
            columns = torch.from_numpy(case.choices[path].columns).long()
            kept = read_tensor(linear.outlier_weight)
            assert torch.equal(
                kept.view(torch.uint16), half[:, columns].contiguous().view(torch.uint16)
            )
            assert not codes[:, columns].any()
            error[:, columns] = 0
        assert (error <= scale * (0.5 + 2.0**-17)).all()
        assert linear.outliers == len(case.choices[path].columns if path in case.choices else [])


@settings(deadline=None, max_examples=120)
@given(cases())
def test_any_checkpoint(case: Case) -> None:
    """Within half a step, bit-exact in 16 bits; the bytes depend on nothing but the values and the options."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for number, shards in enumerate(case.shards):
            source = write_checkpoint(place / str(number) / "source", {"model_type": "unknown"}, case.tensors,
                                      shards=min(shards, len(case.tensors)))  # fmt: skip
            memory = {"max_memory": case.max_memory} if number else {}
            convert(source, place / f"out{number}", case, jobs=case.jobs[number], **memory)
        assert contents(place / "out0") == contents(place / "out1")
        check(case, open_converted(place / "out0"))
