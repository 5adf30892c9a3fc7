"""Devices: the names and ``torch.device`` objects that all functions and commands accept.

Imports torch only to look for a device: a footprint can be predicted without it, for machines other than this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from ..errors import ArgumentError, DeviceError, Int8convError

if TYPE_CHECKING:
    import torch

DeviceLike: TypeAlias = "str | torch.device"
"""``"cpu"``, ``"cuda"`` (PyTorch's current GPU), ``"cuda:1"``, or such a ``torch.device``."""
DeviceKind = Literal["cpu", "cuda"]


OLDEST: Final = (8, 0)
"""Compute capability of the oldest GPUs that have the instructions."""


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
    if torch.version.hip is not None:
        raise ArgumentError("device", expected="cpu: GPUs of AMD are not supported", found=device)
    if find_spec("triton") is None:
        raise ArgumentError("device", expected="cpu: triton is not installed", found=device)
    index = torch.device(device).index
    count = torch.cuda.device_count()
    if index is not None and index >= count:
        raise ArgumentError("device", expected=f"cuda:0 to cuda:{count - 1}", found=device)
    found = torch.device(kind, torch.cuda.current_device() if index is None else index)
    major, minor = torch.cuda.get_device_capability(found)
    if (major, minor) < OLDEST:
        raise ArgumentError("device", expected="a GPU of compute capability 8.0 (Ampere) or newer",
                            found=f"{torch.cuda.get_device_name(found)} of {major}.{minor}")  # fmt: skip
    return Placement(kind, found)


class Target(NamedTuple):
    """A GPU to compile for."""

    capability: int
    """Compute capability as one number, such as 90."""
    device: torch.device | None
    """None: it need not be here."""


def find_target(device: DeviceLike = "cuda", capability: int | None = None) -> Target:
    """Find the GPU that kernels are to be compiled for: one that is here, or any of a compute capability.

    Raises:
        ArgumentError: there is none, or int8conv does not support it.
    """
    if capability is None:
        if device_kind(device) == "cpu":
            raise ArgumentError("device", expected="cuda or cuda:N", found=device)
        import torch

        if not torch.cuda.is_available():
            raise ArgumentError("device", expected="a capability to compile for: PyTorch finds no GPU here", found=device)  # fmt: skip
        found = find_placement(device).device
        major, minor = torch.cuda.get_device_capability(found)
        return Target(10 * major + minor, found)
    if divmod(capability, 10) < OLDEST:
        raise ArgumentError("capability", expected="8.0 (Ampere) or newer", found=capability / 10)
    if find_spec("triton") is None:
        raise ArgumentError("capability", expected="none: triton is not installed", found=capability / 10)  # fmt: skip
    return Target(capability, None)


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


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Make a GPU PyTorch's current one within the block: Triton launches kernels on that.

    Raises:
        DeviceError: the GPU is out of memory or reports an error, or a kernel cannot be compiled for it.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), gpu_errors(device):
        yield


@contextmanager
def gpu_errors(device: object) -> Iterator[None]:
    """Errors of a GPU and of Triton's compiler within the block become ``DeviceError``s of ``device``.

    Raises:
        DeviceError: as for ``current``.
    """
    try:
        yield
    except Int8convError:
        raise
    except Exception as error:  # of PyTorch and Triton, which have no common base class
        translated = _translated(error, device)
        if translated is None:
            raise
        raise translated from error


def _translated(error: Exception, device: object) -> DeviceError | None:
    """The error of a GPU or of Triton's compiler in one line; None: something else."""
    names = {kind.__name__ for kind in type(error).__mro__}
    first = str(error).strip().partition("\n")[0]
    if "OutOfMemoryError" in names:
        return DeviceError("out of memory on the GPU", file=device, found=first.partition(" GPU ")[0].rstrip("."),
                           hint="a shorter context, a smaller batch or kv_cache int8; int8conv footprint says what fits")  # fmt: skip
    if "C compiler" in first:
        return DeviceError("Triton needs a C compiler", file=device, found=first, hint="install gcc, or name one in CC")  # fmt: skip
    if type(error).__module__.startswith("triton."):
        return DeviceError("a kernel cannot be compiled for this GPU", file=device, found=f"{type(error).__name__}: {first}",
                           hint="use the releases of Triton and PyTorch in constraints.txt, or the CPU")  # fmt: skip
    if "AcceleratorError" in names or (isinstance(error, RuntimeError) and first.startswith("CUDA ")):  # fmt: skip
        return DeviceError("the GPU reports an error", file=device, found=first,
                           hint="results after it are undefined: start again")  # fmt: skip
    return None
