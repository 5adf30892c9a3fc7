"""Read a model in the int8conv format with numpy and safetensors, without int8conv.

Written from ``int8conv/formats/SPEC.md`` alone, to show what a reader has to do and as a starting point for others:

    python examples/reader.py FOLDER                # its contents
    python examples/reader.py FOLDER PATH           # one linear, such as model.layers.0.mlp.down_proj

It checks the rules that guard against misreading (F1, F2, F6, F11, H11, M1, M2, M4, C1 to C5). Left out are checksums (M3), numeric
rules (N1 to N8), the layout (L1 to L6), which matters to readers that map files, and malformed headers, which the safetensors
library rejects.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import deserialize, safe_open

Array = npt.NDArray[Any]
DTYPES = {
    "BOOL": "?", "I8": "<i1", "U8": "<u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8",
    "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
COMPANIONS = ("weight_scale", "outlier_index", "outlier_weight")


class FormatError(Exception):
    """A folder violates a rule of SPEC.md, whose name comes first."""


def check(holds: bool, rule: str, problem: str) -> None:
    if not holds:
        raise FormatError(f"[{rule}] {problem}")


@dataclass(frozen=True)
class Linear:
    """``y = x @ weight^T + bias`` for a weight ``[out, in]`` with k columns in 16 bits."""

    codes: Array
    """int8 ``[out, in]``, zero in outlier columns."""
    scale: Array
    """float32 ``[out]``."""
    columns: Array
    """int32 ``[k]``, strictly ascending."""
    kept: Array
    """float32 ``[out, k]``: the 16-bit columns, widened."""
    bias: Array | None
    """float32 ``[out]``."""
    threshold: float | None
    """W8A8: the magnitude from which an activation is multiplied in 16 bits (SPEC.md, 1.2)."""

    def weight(self) -> Array:
        """The dequantized weight, float32 ``[out, in]``."""
        weight: Array = self.codes.astype(np.float32) * self.scale[:, None]
        weight[:, self.columns] = self.kept
        return weight

    def __call__(self, x: Array) -> Array:
        """W8A16: ``[tokens, in]`` -> ``[tokens, out]``."""
        y: Array = x @ self.weight().T
        return y if self.bias is None else y + self.bias

    def w8a8(self, x: Array) -> Array:
        """The same with 8-bit activations, except in outlier columns and from the threshold on (SPEC.md, 1.2)."""
        if self.threshold == 0:
            return self(x)
        inside = x.astype(np.float32)
        inside[:, self.columns] = 0
        large = np.abs(inside) >= (np.inf if self.threshold is None else self.threshold)
        small = np.where(large, np.float32(0), inside)
        scale = np.abs(small).max(axis=1, keepdims=True) / np.float32(127)
        codes = np.rint(small / np.where(scale == 0, np.float32(1), scale))
        y: Array = (codes.astype(np.int32) @ self.codes.T.astype(np.int32)) * scale * self.scale
        y += np.where(large, inside, 0) @ (self.codes.astype(np.float32) * self.scale[:, None]).T
        y += x[:, self.columns] @ self.kept.T
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class Model:
    """A folder's config, its groups of linears that share an input, and all other tensors by name."""

    config: dict[str, Any]
    groups: list[list[str]]
    linears: dict[str, Linear]
    others: dict[str, Array]


def read_model(folder: Path) -> Model:
    """Read everything in a folder.

    Raises:
        FormatError: it violates a rule.
        OSError, ValueError, KeyError, safetensors.SafetensorError: a file is absent, not JSON, incomplete or damaged.
    """
    config = read_json(folder / "config.json")
    section = config.get("quantization_config") or {}
    check(section.get("quant_method") == "int8conv", "F1", "not an int8conv folder")
    manifest = read_json(folder / "int8conv.json")
    for version in (section.get("version"), manifest["version"]):
        check(version == 1 and type(version) is int, "F2", f"unknown version {version!r}")
    tensors = dict(read_tensors(folder))
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    linears: dict[str, Linear] = {}
    for group in manifest["inputs"]:
        for path in group["linears"]:
            check(path not in linears, "M1", f"{path} is in two groups")
            linears[path] = take_linear(tensors, path, group["threshold"])
        check_group([linears[path] for path in group["linears"]], group)
    for name, tensor in tensors.items():
        integers = name.endswith(".weight") and tensor.dtype == np.int8
        check(not integers, "M1", f"{name} is in no group")
    for name in tensors:
        check(name.rpartition(".")[2] not in COMPANIONS, "C1", f"{name} has no companions")
    if "groups" in section:
        check_config(section["groups"], manifest["inputs"], dtypes)
    return Model(config, [group["linears"] for group in manifest["inputs"]], linears, tensors)


def check_config(groups: Any, inputs: Any, dtypes: dict[str, np.dtype[Any]]) -> None:
    """Check what the config tells tools that do not read the manifest."""
    check(len(groups) == len(inputs), "F11", f"{len(groups)} groups, {len(inputs)} inputs")
    for group, entry in zip(groups, inputs, strict=True):
        kept = dtypes.get(f"{entry['linears'][0]}.outlier_weight")
        dtype = None if kept is None else "F16" if kept == np.float16 else "BF16"  # widened
        for field in ("linears", "outliers", "threshold"):
            check(group[field] == entry[field], "F11", f"{field} of {group} and of {entry}")
        check(group["dtype"] == dtype, "F11", f"dtype of {group} is not {dtype}")


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    check(isinstance(value, dict), "F3", f"{path.name} is not an object")
    return value


def read_tensors(folder: Path) -> Iterator[tuple[str, Array]]:
    """All tensors listed in the index, shard by shard; the library rejects malformed files."""
    weight_map = read_json(folder / "model.safetensors.index.json")["weight_map"]
    for shard in sorted(set(weight_map.values())):
        check(Path(shard).name == shard, "F4", f"{shard!r} is not a plain file name")
        with safe_open(folder / shard, "numpy") as file:
            metadata = file.metadata()
        check(metadata == {"format": "int8conv", "version": "1"}, "H11", f"{shard}: {metadata}")
        stored = dict(deserialize((folder / shard).read_bytes()))  # type: ignore[no-untyped-call]
        names = {name for name in stored if not name.startswith("int8conv.padding.")}
        listed = {name for name, file in weight_map.items() if file == shard}
        check(names == listed, "F6", f"{shard} and the index differ: {sorted(names ^ listed)[:3]}")
        for name in sorted(names):
            yield name, as_array(**stored[name])


def as_array(dtype: str, shape: list[int], data: bytes) -> Array:
    """A tensor's values; bfloat16 is widened to float32, as numpy lacks it."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    return np.frombuffer(data, DTYPES[dtype]).reshape(shape)


def take_linear(tensors: dict[str, Array], path: str, threshold: float | None) -> Linear:
    """Build a linear from its tensors, which are removed from ``tensors``."""
    parts = [f"{path}.{kind}" for kind in ("weight", *COMPANIONS, "bias")]
    weight, scale, columns, kept, bias = (tensors.pop(name, None) for name in parts)
    check(weight is not None and scale is not None, "M1", f"{path} has no weight or no scale")
    assert weight is not None and scale is not None
    check((columns is None) == (kept is None), "C2", f"{path}: outlier columns without indices")
    out, in_features = weight.shape[:2]
    if columns is None or kept is None:
        columns, kept = np.empty(0, np.int32), np.empty((out, 0), np.float32)
    shapes = (scale.shape, kept.shape, (out,) if bias is None else bias.shape)
    check(weight.dtype == np.int8 and weight.shape[2:] == (1,), "C3", f"{path}: wrong weight")
    check(shapes == ((out,), (out, *columns.shape), (out,)), "C3", f"{path}: shapes do not fit")
    check(len(columns) % 16 == 0, "C4", f"{path}: {len(columns)} outlier columns")
    inside = bool(((columns >= 0) & (columns < in_features)).all())
    check(inside and bool((np.diff(columns) > 0).all()), "C5", f"{path}: wrong outlier columns")
    bias = None if bias is None else bias.astype(np.float32)
    return Linear(weight[..., 0], scale, columns, kept.astype(np.float32), bias, threshold)


def check_group(linears: list[Linear], group: dict[str, Any]) -> None:
    first = linears[0]
    for linear in linears:
        sizes = (linear.codes.shape[1], len(linear.columns))
        check(sizes == (group["in_features"], group["outliers"]), "M2", f"{sizes} in {group}")
        check(bool((linear.columns == first.columns).all()), "M2", f"columns differ in {group}")
        check((linear.bias is None) == (first.bias is None), "M4", f"biases of some in {group}")


def main(folder: str, path: str | None = None) -> None:
    model = read_model(Path(folder))
    if path is None:
        print(
            f"{model.config['model_type']}: {len(model.linears)} linears, {len(model.others)} other tensors"
        )
        for group in model.groups:
            first = model.linears[group[0]]
            columns = f"{len(first.columns)}/{first.codes.shape[1]} columns in 16 bits"
            print(f"{' + '.join(group)}: {columns}, threshold {first.threshold}")
        return
    linear = model.linears[path]
    print(f"{path} {list(linear.codes.shape)}, outlier columns {linear.columns.tolist()}")
    print(linear.weight())


if __name__ == "__main__":
    main(*sys.argv[1:])
