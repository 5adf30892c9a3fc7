"""Devices: the names and ``torch.device`` objects that all functions and commands accept.

Imports torch only to look for a device: a footprint can be predicted without it, for machines other than this one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from ..errors import ArgumentError

if TYPE_CHECKING:
    import torch

DeviceLike: TypeAlias = "str | torch.device"
"""``"cpu"``, ``"cuda"`` (PyTorch's current GPU), ``"cuda:1"``, or such a ``torch.device``."""
DeviceKind = Literal["cpu", "cuda"]


class Placement(NamedTuple):
    """A device on which a model can run."""

    kind: DeviceKind
    """Selects the backend."""
    device: torch.device
    """Device of weights, cache and activations; a GPU with its number."""


def device_kind(device: DeviceLike) -> DeviceKind:
    """The kind of a device, which need not exist on this machine.

    Raises:
        ArgumentError: neither a CPU nor a CUDA GPU.
    """
    kind, colon, index = str(device).partition(":")
    if kind == "cpu" and index in ("", "0"):
        return "cpu"
    if kind == "cuda" and (index.isdecimal() or not colon):
        return "cuda"
    raise ArgumentError("device", expected="cpu, cuda or cuda:N", found=str(device))


def find_placement(device: DeviceLike) -> Placement:
    """Find the device that a model is to run on.

    Raises:
        ArgumentError: neither a CPU nor a CUDA GPU, or PyTorch or Triton cannot use it here.
    """
    kind = device_kind(device)
    import torch

    if kind == "cpu":
        return Placement(kind, torch.device("cpu"))
    if not torch.cuda.is_available():
        raise ArgumentError("device", expected="cpu: PyTorch finds no GPU here", found=device)
    if find_spec("triton") is None:
        raise ArgumentError("device", expected="cpu: triton is not installed", found=device)
    index = torch.device(device).index
    count = torch.cuda.device_count()
    if index is not None and index >= count:
        raise ArgumentError("device", expected=f"cuda:0 to cuda:{count - 1}", found=device)
    return Placement(kind, torch.device(kind, torch.cuda.current_device() if index is None else index))  # fmt: skip


def find_torch_device(device: DeviceLike) -> torch.device:
    """Find any PyTorch device that works on this machine, for quantizing and calibration.

    Raises:
        ArgumentError: there is no working device of that name.
    """
    import torch

    try:
        found = torch.device(device)
        if torch.zeros(1, device=found).add_(1).item() == 1:
            return found
        reason = "it does not work"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
    raise ArgumentError("device", expected="cpu, or a device that PyTorch supports here",
                        found=f"{device} ({reason})")  # fmt: skip


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU PyTorch's current one within the block: Triton launches kernels on that."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
