"""What a source checkpoint must be: a whole model's weights, under their own names, and not packed by another quantizer."""

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

_FP8_METHODS: Final = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt")
"""Methods by which a config may announce FP8 weights; the tensors show whether it is them."""
_WRAPPERS: Final = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Parts of names that a wrapper puts anywhere."""
_WRAPPED: Final = re.compile(rf"(?:^|\.)({'|'.join(_WRAPPERS)})\.")
_PREFIXES: Final = {
    "module.": "DistributedDataParallel or DeepSpeed",
    "base_model.model.": "peft (merge_and_unload() takes it off)",
}
"""What every name starts with."""


def check_plain(checkpoint: Checkpoint) -> None:
    """Refuse what stands for a model's weights and is something else.

    Raises:
        AlreadyQuantizedError: the config, or a tensor's name or dtype, says that another quantizer packed them; FP8 weights
            with their scales are floats still.
        AdapterError: all tensors are those of an adapter.
        WrappedNamesError: the names are those of a wrapper around the model.
        ShapeError: a weight has no elements, as a placeholder of DeepSpeed ZeRO-3.
    """
    check_not_adapter(checkpoint.folder, (), checkpoint.tensors)
    _check_config(checkpoint)
    _check_names(checkpoint)
    for name, tensor in checkpoint.tensors.items():
        if (method := packed_by(tensor, checkpoint.tensors)) is not None:
            raise AlreadyQuantizedError(
                "the source is quantized already", file=tensor.file, tensor=name, found=method,
                hint=_instead(checkpoint.folder, checkpoint.config),
            )  # fmt: skip
        if tensor.shape == (0,) and name.endswith(".weight"):
            raise ShapeError(
                "a weight without elements", file=tensor.file, tensor=name, found="[0]",
                hint="a placeholder of DeepSpeed ZeRO-3: gather the weights with its zero_to_fp32.py",
            )  # fmt: skip


def _check_config(checkpoint: Checkpoint) -> None:
    for key, section in quantization_sections(checkpoint.config):
        method = section.get("quant_method") if isinstance(section, dict) else None
        if isinstance(method, str) and method in _FP8_METHODS:
            continue
        if key.endswith("quantization"):  # MLX's, which has no method
            if not isinstance(section, dict) or not {"bits", "group_size"} & section.keys():
                continue
            found = "MLX"
        else:
            found = f"quant_method {method!r}"
        raise AlreadyQuantizedError(
            "the source is quantized already", file=checkpoint.folder / CONFIG_FILE,
            expected=f"no {key}", found=found,
            hint=_instead(checkpoint.folder, checkpoint.config),
        )  # fmt: skip


def _instead(folder: Path, config: Mapping[str, Any]) -> str:
    base = made_from(folder, config)
    return "give the checkpoint it was made from" + (f": {base}" if base else "")


def _check_names(checkpoint: Checkpoint) -> None:
    names = checkpoint.tensors
    found = next((match[1] for match in map(_WRAPPED.search, names) if match), None)
    wrapper = _WRAPPERS.get(found or "")
    for prefix, by in _PREFIXES.items():
        if names and all(name.startswith(prefix) for name in names):
            found, wrapper = prefix, by
    if wrapper is not None:
        raise WrappedNamesError(
            f"tensor names have '{found}', of {wrapper}", file=checkpoint.folder,
            tensor=next(name for name in names if str(found) in name),
            hint="save the model inside of the wrapper, or rename the tensors",
        )  # fmt: skip
