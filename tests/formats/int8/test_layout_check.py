"""The rules of SPEC.md section 4, each against tensors that break it by a byte; whole damaged folders are in test_layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from int8conv.errors import LayoutError
from int8conv.formats.int8.layout import TensorSpec, plan_layout
from int8conv.formats.int8.layout_check import check_layout
from int8conv.formats.int8.manifest import InputGroup
from int8conv.formats.safetensors.header import Header
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.source.checkpoint import Checkpoint, StoredTensor

from ..damage import rejected

SHARD = "model-00001-of-00001.safetensors"
GROUP = InputGroup(("q", "k"), in_features=64, outliers=16, threshold=None)
Q, K = "q", "k"


def spec(name: str, dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


@pytest.fixture
def checkpoint() -> Checkpoint:
    """A norm, then two linears that share an input, as the planner places them."""
    units = [
        ((spec("norm.weight", "F16", 3),),),
        (
            (spec("q.weight", "I8", 3, 64), spec("k.weight", "I8", 5, 64)),
            (spec("q.weight_scale", "F32", 3), spec("k.weight_scale", "F32", 5)),
            (spec("q.outlier_index", "I32", 16),),
            (spec("q.outlier_weight", "F16", 3, 16), spec("k.outlier_weight", "F16", 5, 16)),
            (spec("k.bias", "F16", 5),),
        ),
    ]
    (shard,) = plan_layout(units, max_shard_bytes=1 << 30)
    assert shard.name == SHARD
    file, offset = LocalFile(Path("folder") / SHARD), len(shard.header)
    tensors = {
        info.name: StoredTensor(
            info.name, info.dtype, info.shape, file, offset + info.begin, info.nbytes
        )
        for info in shard.tensors
        if not info.name.startswith("int8conv.padding")
    }
    return Checkpoint(Path("folder"), {}, tensors, {SHARD: Header({}, {}, offset)}, None)


def moved(checkpoint: Checkpoint, *names: str, by: int = 0, **fields: object) -> Checkpoint:
    """With some tensors at a later offset, or with other fields."""
    changed = {
        name: tensor._replace(offset=tensor.offset + by, **fields)  # type: ignore[arg-type]
        for name, tensor in checkpoint.tensors.items()
        if name in names
    }
    assert changed
    return replace(checkpoint, tensors=checkpoint.tensors | changed)


def test_what_the_planner_places_is_right(checkpoint: Checkpoint) -> None:
    check_layout(checkpoint, [GROUP])


@pytest.mark.parametrize("offset", [8, 4095, 4097, 2048])
def test_a_payload_that_is_not_on_a_page(checkpoint: Checkpoint, offset: int) -> None:
    bad = replace(checkpoint, headers={SHARD: Header({}, {}, offset)})
    with rejected(LayoutError, SHARD, "payload", "4096", str(offset)):
        check_layout(bad, [GROUP])


@pytest.mark.parametrize("by", [1, 2, 128, 255])
@pytest.mark.parametrize("run", [["norm.weight"], ["q.weight", "k.weight"], ["k.bias"]])
def test_a_run_that_is_not_aligned(checkpoint: Checkpoint, run: list[str], by: int) -> None:
    with rejected(LayoutError, SHARD, f"'{run[0]}'", "256"):
        check_layout(moved(checkpoint, *run, by=by), [GROUP])


def test_a_run_may_stand_anywhere_that_is_aligned(checkpoint: Checkpoint) -> None:
    check_layout(moved(checkpoint, "q.weight", "k.weight", by=256 * 99), [GROUP])


@pytest.mark.parametrize("kind", ["weight", "weight_scale", "outlier_weight"])
@pytest.mark.parametrize("by", [-1, 1, 256])
def test_a_tensor_that_does_not_follow_its_neighbour(
    checkpoint: Checkpoint, kind: str, by: int
) -> None:
    with rejected(LayoutError, f"'{K}.{kind}'", f"'{Q}.{kind}'", "does not directly follow"):
        check_layout(moved(checkpoint, f"{K}.{kind}", by=by), [GROUP])


def test_tensors_of_a_run_in_two_dtypes(checkpoint: Checkpoint) -> None:
    with rejected(LayoutError, f"'{K}.outlier_weight'", "one matrix", "F16", "BF16"):
        check_layout(moved(checkpoint, f"{K}.outlier_weight", dtype="BF16"), [GROUP])


@pytest.mark.parametrize("name", ["k.weight", "q.weight_scale", "q.outlier_index", "k.bias"])
def test_a_group_in_two_shards(checkpoint: Checkpoint, name: str) -> None:
    other = LocalFile(Path("folder") / "other.safetensors")
    with rejected(LayoutError, f"'{name}'", "another shard", "'q.weight'", SHARD):
        check_layout(moved(checkpoint, name, file=other), [GROUP])


def test_without_the_group_its_linears_need_not_stand_together(checkpoint: Checkpoint) -> None:
    """Then each tensor is a run of its own, and the second of two is not aligned."""
    with rejected(LayoutError, "'k.weight'", "not aligned"):
        check_layout(checkpoint, [])
