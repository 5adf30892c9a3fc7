"""How a memory limit becomes workers and blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.memory import DEFAULT_MAX_MEMORY, plan_workers
from int8conv.convert.options import ConvertOptions
from int8conv.convert.plan import Plan, make_plan
from int8conv.convert.source import open_source
from int8conv.errors import ArgumentError
from int8conv.formats.hub.download import resolve

from ..checkpoints import write_checkpoint


@pytest.fixture
def plan(source: Path) -> Plan:
    options = ConvertOptions()
    return make_plan(open_source(resolve(source), options).selection, {}, options)


def test_the_default_has_room_for_several_workers(plan: Plan) -> None:
    assert plan_workers(plan, 2, DEFAULT_MAX_MEMORY).jobs == 2
    assert 1 < plan_workers(plan, 64, DEFAULT_MAX_MEMORY).jobs < 64
    assert plan_workers(plan, 64, 10**11).jobs == 64


def test_less_memory_means_fewer_workers_and_then_smaller_blocks(plan: Plan) -> None:
    limits = [256_000_000, 200_000_000, 128_000_000, 100_000_000, 90_000_000, 85_000_000]
    fitted = [plan_workers(plan, 16, limit) for limit in limits]
    needs = [w.jobs * w.block_elements for w in fitted]
    assert needs == sorted(needs, reverse=True)
    assert fitted[0].jobs > fitted[2].jobs >= 1
    assert fitted[-1].block_elements < fitted[0].block_elements


def test_a_limit_below_one_row_is_refused(plan: Plan) -> None:
    with pytest.raises(
        ArgumentError, match=r"max_memory .* expected \d+ bytes or more, found 1000"
    ):
        plan_workers(plan, 2, 1000)


def test_the_limit_does_not_change_the_bytes(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", dtype=torch.float32)
    for name, limit in (("wide", 10**9), ("narrow", 84_100_000)):
        convert_checkpoint(source, tmp_path / name, outliers="none", max_memory=limit)
    for path in (tmp_path / "wide").iterdir():
        assert path.read_bytes() == (tmp_path / "narrow" / path.name).read_bytes(), path.name
