"""Adapters (LoRA and similar, as saved by peft): small weights that modify a model but are not one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from ...errors import AdapterError, Int8convError
from ..json_file import read_json

CONFIG_NAME: Final = "adapter_config.json"
MERGE: Final = "merge it into its base first: peft's merge_and_unload(), then save_pretrained()"

_WEIGHTS: Final = re.compile(r"adapter_model\.(safetensors|bin)")
_TENSOR: Final = re.compile(r"\.(lora_\w+|hada_\w+|lokr_\w+|oft_\w+|ia3_\w+|vera_\w+|prompt_embeddings|"
                            r"prompt_encoder|modules_to_save)(\.|$)")  # fmt: skip
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def is_adapter_name(name: str) -> bool:
    """Whether a file of that name holds adapter weights."""
    return _WEIGHTS.fullmatch(name) is not None


def check_not_adapter(
    folder: Path, files: Iterable[str], tensors: Iterable[str] | None = None
) -> None:
    """Raise AdapterError for a folder that holds an adapter but no model.

    Args:
        folder: the folder.
        files: the names of its files.
        tensors: the names of its tensors, if any; an adapter saved under a model's file name has only adapter tensors.
    """
    if tensors is None:
        adapter = any(map(is_adapter_name, files)) or CONFIG_NAME in files
    else:
        names = list(tensors)
        adapter = bool(names) and all(_TENSOR.search(name) for name in names)
    if adapter:
        base = _base(folder)
        raise AdapterError(
            "an adapter, not a model" + (f": its base is {base}" if base else ""), file=folder,
            hint=MERGE,
        )  # fmt: skip


def _base(folder: Path) -> str | None:
    """The id of the model that an adapter was made for, from its config."""
    try:
        config: Mapping[str, object] = read_json(folder / CONFIG_NAME)
    except Int8convError:
        return None
    base = config.get("base_model_name_or_path")
    return base if isinstance(base, str) and _HUB_ID.fullmatch(base) else None
