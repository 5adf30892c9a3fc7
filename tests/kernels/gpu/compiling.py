"""Compile what the launchers launch, for GPUs that are not there, and read what came out.

The launchers run on meta tensors and their launches are recorded, so that the arguments, specialisations and constants
are those of a real call. Runs without ``TRITON_INTERPRET``: as a process of its own.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from int8conv.kernels.gpu import launch

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_OPTIONS = {"num_warps", "num_stages"}
_TYPES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int8: "i8",
    torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


@dataclass
class Recorded:
    """One launch."""

    kernel: Any
    args: tuple[Any, ...]
    meta: dict[str, Any]
    grid: tuple[int, ...] = ()

    @property
    def named(self) -> dict[str, Any]:
        """Arguments and constants by name."""
        return dict(zip(self.kernel.arg_names, self.args, strict=False)) | self.meta


@contextmanager
def recording(capability: int) -> Iterator[list[Recorded]]:
    """Launches are put into a list instead of being started, for a GPU of this capability."""
    launches: list[Recorded] = []

    def record(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
        launches.append(Recorded(kernel, args, meta, grid))

    real = launch.launch, launch.capability
    launch.launch, launch.capability = record, lambda device: capability  # type: ignore[assignment]
    try:
        yield launches
    finally:
        launch.launch, launch.capability = real  # type: ignore[assignment]


@dataclass
class Binary:
    """What the compiler made."""

    ptx: str
    registers: int
    spilled: int
    """Bytes of stack of a thread."""
    shared: int
    ops: Counter[str] = field(default_factory=Counter)
    """SASS instructions."""
    sass: str = ""

    def count(self, start: str) -> int:
        return sum(n for op, n in self.ops.items() if op.startswith(start))


@dataclass
class Specialized:
    """A launch as Triton's runtime tells it from others: what it compiles once."""

    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], Any]


def specialize(launched: Recorded) -> Specialized:
    """Types, constants and what is known of the other arguments."""
    names = launched.kernel.arg_names
    values = dict(zip(names, launched.args, strict=False)) | {
        k: v for k, v in launched.meta.items() if k not in _OPTIONS
    }
    found = Specialized({}, {}, {})
    for i, name in enumerate(names):
        value, parameter = values[name], launched.kernel.params[i]
        special = type(value) is int and not parameter.do_not_specialize
        is_constant = parameter.is_constexpr or value is None or (special and value == 1)
        found.signature[name] = kind = "constexpr" if is_constant else _kind(value)
        if kind == "constexpr":
            found.constants[name] = value
        elif kind.startswith("*") or (special and value % 16 == 0):
            found.attributes[(i,)] = [["tt.divisibility", 16]]
    return found


def compile_for(launched: Recorded, capability: int) -> Binary:
    """Compile one launch as Triton's runtime would specialise it."""
    found = specialize(launched)
    source = ASTSource(launched.kernel, found.signature, found.constants, found.attributes)
    options = {k: v for k, v in launched.meta.items() if k in _OPTIONS}
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options | {"enable_fp_fusion": True})
    return _read(compiled)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + _TYPES[value.dtype]
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{_TYPES[value.base.dtype]}{list(value.block_shape)}>"
    return "fp32" if isinstance(value, float) else "i32" if abs(value) < 2**31 else "i64"


def _read(compiled: Any) -> Binary:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    ops = Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", sass, re.M))
    ptx = compiled.asm["ptx"]
    return Binary(ptx, int(found[1]), int(found[2]), compiled.metadata.shared, ops, sass)


def _tool(name: str, *args: str) -> str:
    command = [str(_TOOLS / name), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
