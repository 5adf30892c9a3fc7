"""Every causal type of transformers: what ``convert`` plans for each tensor, against what its module is.

``census.json`` has the names, shapes and kinds of tensors of a few layers of every type, at the width of its defaults (written by
``benchmarks/census.py``, which also converts them all). Kinds come from the classes of transformers' modules, not from names.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.census import Header, unpacked
from int8conv.convert.by_name.linear_names import is_vision_or_audio
from int8conv.convert.options import ConvertOptions
from int8conv.convert.outliers.selection import Group
from int8conv.convert.source import open_source
from int8conv.formats.hub.download import resolve
from int8conv.formats.safetensors.stored import StoredTensor
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.models.families import FAMILIES
from int8conv.runtime.models.wrapped import WRAPPERS

CENSUS: dict[str, Any] = json.loads(Path(__file__).with_name("census.json").read_text())
NOT_BUILT: dict[str, str] = {
    "gemma3n": "its vision part is a model of timm, which is not installed; its text part is here",
    "gemma4_assistant": "a draft model: with its text part's defaults the config refuses itself, as all layers must share another model's keys",
    "musicgen": "transformers gives the class its outer config, which has none of the decoder's keys: no config builds it",
    "musicgen_melody": "the same",
    "qwen4_exp": "its text part's defaults leave the sizes of indexer and embeddings open (None)",
    "qwen4_exp_text": "its defaults leave the sizes of indexer and embeddings open (None)",
}
"""Types that transformers does not build from defaults with a few layers, and why."""
ONLY_BY_NAME = {"glm4_moe": "its defaults rotate an odd number of channels, which is refused"}
"""Known families that the runtime refuses with the defaults of their class."""
INT8_ALL_THE_SAME: dict[str, str] = {
    r"\S+ \S+\.indexer\.(wk|wq_b|compressor\.wkv)\.weight": "queries and keys that only choose positions",
    r"dbrx \S+\.ffn\.experts\.mlp\.(w1|v1|w2)": "experts, one below the other in a matrix",
    r"\S+ \S+\.self_attn\.kv_b_proj\.weight": "latent attention: keys and values from the latent",
}
"""Regular expressions of a type and a tensor that is no linear by its class and becomes int8 -> why."""
KEPT_ALL_THE_SAME: dict[str, str] = {
    r"\S+ (cls\.predictions\.(transform\.)?|lm_head\.)dense\.weight": "a linear of the head",
    r"big_bird bert\.pooler\.weight": "not in a block, and unused for text",
    r"(falcon_)?mamba \S+\.x_proj\.weight": "steers the recurrence: step sizes, B and C",
    r"bailing_hybrid \S+\.f_proj\.weight": "the forget gate: its errors carry over from token to token",
    r"fuyu vision_embed_tokens\.weight": "the projector of images",
    r"gemma3n_text model\.altup_(unembed_)?projections\.\*\.weight": "before and behind the layers, of which the release has 35",
    r"gemma4_unified_assistant (pre|post)_projection\.weight": "from and to another model's states, outside the blocks",
    r"git \S+": "the tower and the embeddings of images",
    r"prophetnet \S+\.relative_pos_embeddings\.weight": "a bias of positions, by its name an embedding",
    r"roc_bert \S+\.map_inputs_layer\.weight": "joins embeddings, before the blocks",
    r"(xmod|zamba2) \S+adapter\S+": "adapters, of low rank",
}
"""The same of large linears that stay in 16 bits without a note, with ``*`` for numbers -> why."""
SENSES = ("vision, audio and projectors stay in 16 bits", "the other parts stay in 16 bits")


def checkpoint(folder: Path, config: dict[str, Any], tensors: list[Header]) -> Path:
    """Headers with a hole for data."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, _, shape in tensors:
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def _holding(offsets: set[int], tensors: Mapping[str, StoredTensor]) -> set[str]:
    """Names of the tensors of a file that have these offsets in them: an expert may be part of a stack."""
    begins = sorted((tensor.offset, name) for name, tensor in tensors.items())
    return {begins[bisect_right(begins, (offset, "~")) - 1][1] for offset in offsets}


def _listed(model_type: str, name: str, exceptions: Mapping[str, str]) -> bool:
    return any(re.fullmatch(pattern, f"{model_type} {name}") for pattern in exceptions)


def test_every_type_is_here() -> None:
    assert set(CENSUS) | set(NOT_BUILT) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not set(CENSUS) & set(NOT_BUILT)


@pytest.mark.parametrize("model_type", CENSUS)
def test_each_tensor_becomes_what_it_should(model_type: str, tmp_path: Path) -> None:
    entry = CENSUS[model_type]
    tensors = list(unpacked(entry["tensors"]))
    source = resolve(checkpoint(tmp_path / "source", entry["config"], tensors))
    opened = open_source(source, ConvertOptions(), headers_only=True)
    saved = entry["config"]["model_type"]  # gpt-sw3 is saved as a gpt2
    known = saved in FAMILIES or saved in WRAPPERS
    assert (opened.architecture is not None) == (known and model_type not in ONLY_BY_NAME)
    groups = [item for item in opened.selection.items if isinstance(item, Group)]
    offsets = {linear.weight.stored.offset for group in groups for linear in group.linears}
    quantized = _holding(offsets, open_checkpoint(source.folder).tensors)
    total = sum(2 * prod(shape) for _, _, shape in tensors)
    kept: dict[str, int] = {}
    for name, kind, shape in tensors:
        if name in quantized:
            allowed = kind in ("linear", "experts") or _listed(model_type, name, INT8_ALL_THE_SAME)
            assert allowed, f"{name} is of kind {kind}, and becomes int8"
        elif kind in ("linear", "experts"):
            pattern = re.sub(r"\d+", "*", name)
            kept[pattern] = kept.get(pattern, 0) + 2 * prod(shape)
    said = "\n".join(opened.notes)
    for pattern, nbytes in kept.items():
        announced = pattern in said or (
            any(each in said for each in SENSES) and is_vision_or_audio(pattern)
        )
        if nbytes > total / 100 and not announced:
            assert _listed(model_type, pattern, KEPT_ALL_THE_SAME), f"{pattern}: {nbytes / total:.1%} stay in 16 bits"  # fmt: skip
