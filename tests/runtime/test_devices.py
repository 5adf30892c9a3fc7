"""Device names and objects: which are taken, and what the refused are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import int8conv
from int8conv.errors import ArgumentError
from int8conv.runtime import devices
from int8conv.runtime.devices import (
    Placement,
    current,
    device_kind,
    find_placement,
    find_torch_device,
)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)])
def test_a_cpu(device: Any) -> None:
    assert device_kind(device) == "cpu"
    assert find_placement(device) == Placement("cpu", torch.device("cpu"))


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", torch.device("cuda", 1)])
def test_a_gpu_that_need_not_be_here(device: Any) -> None:
    assert device_kind(device) == "cuda"


@pytest.mark.parametrize(
    "device",
    ["", "gpu", "mps", "CUDA", "cuda:", "cuda:one", "cuda:-1", "cuda:0:0", "cpu:1", "meta", None, torch.device("meta")],
)  # fmt: skip
def test_other_devices_are_refused(device: Any) -> None:
    for check in (device_kind, find_placement):
        with pytest.raises(ArgumentError) as caught:
            check(device)
        assert str(caught.value) == f"device: expected cpu, cuda or cuda:N, found {device}".rstrip()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as PyTorch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.mark.parametrize(
    ("device", "number"),
    [("cuda", 1), ("cuda:0", 0), ("cuda:1", 1), (torch.device("cuda"), 1), (torch.device("cuda:0"), 0)],
)  # fmt: skip
def test_a_gpu_gets_its_number(two_gpus: None, device: Any, number: int) -> None:
    assert find_placement(device) == Placement("cuda", torch.device("cuda", number))


def test_a_gpu_that_is_not_there(two_gpus: None) -> None:
    with pytest.raises(ArgumentError, match=r"^device: expected cuda:0 to cuda:1, found cuda:2$"):
        find_placement("cuda:2")


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match="PyTorch finds no GPU here"):
        find_placement("cuda:0")


def test_no_triton(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match="triton is not installed"):
        find_placement("cuda")


def test_the_current_gpu_within_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    assert current(torch.device("cpu")).__enter__() is None
    made: list[object] = []
    monkeypatch.setattr(torch.cuda, "device", made.append)
    current(torch.device("cuda", 1))
    assert made == [torch.device("cuda", 1)]


def test_any_device_that_computes() -> None:
    assert find_torch_device("cpu:0") == torch.device("cpu", 0)
    for device in ("gpu", "meta", "cuda:99"):
        with pytest.raises(ArgumentError, match=f"^device: expected cpu, or .*found {device} "):
            find_torch_device(device)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_every_function_takes_names_and_objects(
    source: Path, tmp_path: Path, example_int8: Path, device: Any
) -> None:
    int8conv.convert_checkpoint(source, tmp_path / "out", device=device)
    assert int8conv.load(tmp_path / "out", device=device).footprint().device == "cpu"
