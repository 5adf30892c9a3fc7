"""Device names and objects: which are taken, and what the refused are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import int8conv
from int8conv.errors import ArgumentError, DeviceError
from int8conv.runtime import devices
from int8conv.runtime.devices import (
    Placement,
    Target,
    current,
    device_kind,
    find_placement,
    find_target,
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
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


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


def test_a_gpu_that_lacks_the_instructions_is_refused_before_anything_is_loaded(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch, example_int8: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ArgumentError, match=r"8\.0 \(Ampere\) or newer, found Tesla T4 of 7\.5"):
        int8conv.load(example_int8, device="cuda:1")


def test_gpus_of_amd_are_refused(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """They call themselves cuda, and have capabilities of their own."""
    monkeypatch.setattr(torch.version, "hip", "6.3")
    with pytest.raises(ArgumentError, match="GPUs of AMD are not supported"):
        find_placement("cuda")


def test_what_kernels_are_compiled_for(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is here, or any that is new enough."""
    assert find_target() == Target(90, torch.device("cuda", 1))
    assert find_target("cuda:0") == Target(90, torch.device("cuda", 0))
    assert find_target(capability=103) == Target(103, None)
    with pytest.raises(ArgumentError, match=r"^capability: expected 8\.0 \(Ampere\) or newer, found 7\.5$"):  # fmt: skip
        find_target(capability=75)
    with pytest.raises(ArgumentError, match=r"^device: expected cuda or cuda:N, found cpu$"):
        find_target("cpu")
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match="triton is not installed"):
        find_target(capability=90)


class Device:
    """In the place of ``torch.cuda.device``."""

    made: ClassVar[list[object]] = []

    def __init__(self, device: object) -> None:
        self.made.append(device)

    def __enter__(self) -> None:
        self.made.append("entered")

    def __exit__(self, *error: object) -> None:
        self.made.append("left")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    Device.made.clear()
    monkeypatch.setattr(torch.cuda, "device", Device)
    return torch.device("cuda", 1)


def test_the_current_gpu_within_a_block(gpu: torch.device) -> None:
    with current(torch.device("cpu")):
        assert Device.made == []
    with current(gpu):
        assert Device.made == [gpu, "entered"]
    assert Device.made[-1] == "left"


def made_by(module: str, name: str, text: str, base: type[Exception] = Exception) -> Exception:
    """An error as a library defines it."""
    return type(name, (base,), {"__module__": module})(text)


FAULTS = {
    "memory": (
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB of which"
        ),
        r"^cuda:1: out of memory on the GPU: found CUDA out of memory. Tried to allocate 2.00 GiB \(.*footprint",
    ),
    "compiler": (
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        "Triton needs a C compiler.*install gcc",
    ),
    "resources": (
        made_by("triton.runtime.errors", "OutOfResources", "out of resource: shared memory, Required: 300000"),
        "cannot be compiled for this GPU: found OutOfResources: out of resource: shared memory",
    ),
    "fault": (
        RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ..."),
        "the GPU reports an error: found CUDA error: an illegal memory access was encountered \\(",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_gpu_reports_is_one_line(gpu: torch.device, fault: str) -> None:
    error, line = FAULTS[fault]
    with pytest.raises(DeviceError, match=line) as caught, current(gpu), current(gpu):
        raise error
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)
    with pytest.raises(type(error)), current(torch.device("cpu")):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ArgumentError("mode"), KeyError("x")])  # fmt: skip
def test_other_errors_stay_what_they_are(gpu: torch.device, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, current(gpu):
        raise error
    assert caught.value is error


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
