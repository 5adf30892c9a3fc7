"""What a source checkpoint must be: a complete model's weights, under their own names, not packed by another quantizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ...errors import AlreadyQuantizedError, ShapeError, WrappedNamesError
from .adapter import check_not_adapter
from .checkpoint import CONFIG_FILE, Checkpoint
from .fp8 import quantization_sections
from .packed import made_from, packed_by

_READ_METHODS: Final = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "mxfp4")
"""Methods that may mean FP8 or four-bit weights that can be read; the tensors show whether they do."""
_WRAPPERS: Final = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Path components that a wrapper may insert anywhere in a name."""
_WRAPPED: Final = re.compile(rf"(?:^|\.)({'|'.join(_WRAPPERS)})\.")
_PREFIXES: Final = {
    "module.": "DistributedDataParallel or DeepSpeed",
    "base_model.model.": "peft (merge_and_unload() removes it)",
}
"""Prefixes of all names."""


def check_plain(checkpoint: Checkpoint) -> None:
    """Refuse anything that is not a model's plain weights.

    Raises:
        AlreadyQuantizedError: according to the config or a tensor's name or dtype, another quantizer packed them (FP8 and
            four-bit weights with scales count as floats).
        AdapterError: all tensors belong to an adapter.
        WrappedNamesError: the names have the prefix of a wrapper around the model.
        ShapeError: a weight has no elements (a placeholder of DeepSpeed ZeRO-3).
    """
    check_not_adapter(checkpoint.folder, (), checkpoint.tensors)
    _check_config(checkpoint)
    _check_names(checkpoint)
    for name, tensor in checkpoint.tensors.items():
        if (method := packed_by(tensor, checkpoint.tensors)) is not None:
            raise AlreadyQuantizedError(
                "the source is already quantized", file=tensor.file, tensor=name, found=method,
                hint=_instead(checkpoint.folder, checkpoint.config),
            )  # fmt: skip
        if tensor.shape == (0,) and name.endswith(".weight"):
            raise ShapeError(
                "a weight has no elements", file=tensor.file, tensor=name, found="[0]",
                hint="a placeholder of DeepSpeed ZeRO-3: gather the weights with its zero_to_fp32.py",
            )  # fmt: skip


def _check_config(checkpoint: Checkpoint) -> None:
    for key, section in quantization_sections(checkpoint.config):
        method = section.get("quant_method") if isinstance(section, dict) else None
        if isinstance(method, str) and method in _READ_METHODS:
            continue
        if key.endswith("quantization"):  # MLX's, which has no method
            if not isinstance(section, dict) or not {"bits", "group_size"} & section.keys():
                continue
            found = "MLX"
        else:
            found = f"quant_method {method!r}"
        raise AlreadyQuantizedError(
            "the source is already quantized", file=checkpoint.folder / CONFIG_FILE,
            expected=f"no {key}", found=found,
            hint=_instead(checkpoint.folder, checkpoint.config),
        )  # fmt: skip


def _instead(folder: Path, config: Mapping[str, Any]) -> str:
    base = made_from(folder, config)
    return "use the checkpoint it was made from" + (f": {base}" if base else "")


def _check_names(checkpoint: Checkpoint) -> None:
    names = checkpoint.tensors
    found = next((match[1] for match in map(_WRAPPED.search, names) if match), None)
    wrapper = _WRAPPERS.get(found or "")
    for prefix, by in _PREFIXES.items():
        if names and all(name.startswith(prefix) for name in names):
            found, wrapper = prefix, by
    if wrapper is not None:
        raise WrappedNamesError(
            f"tensor names contain '{found}' from {wrapper}", file=checkpoint.folder,
            tensor=next(name for name in names if str(found) in name),
            hint="save the model inside the wrapper, or rename the tensors",
        )  # fmt: skip
