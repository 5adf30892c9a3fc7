"""Small random checkpoints, written as the hub has them, without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from int8conv.runtime.architecture import read_architecture

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 160,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OPT: dict[str, Any] = {
    "model_type": "opt", "vocab_size": 96, "hidden_size": 64, "ffn_dim": 160,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    "activation_function": "relu", "do_layer_norm_before": True, "word_embed_proj_dim": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def random_tensors(
    config: dict[str, Any], dtype: torch.dtype = torch.float16, seed: int = 0
) -> dict[str, Tensor]:
    """Every tensor that the config implies, by its name on the hub."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in read_architecture(config, ()).modules:
        shape = module.shape
        weight = torch.randn(shape, generator=generator) * 0.08
        tensors[f"{module.path}.weight"] = (weight + (module.kind == "norm")).to(dtype)
        if module.bias:
            bias = torch.randn(shape[:1], generator=generator) * 0.02
            tensors[f"{module.path}.bias"] = bias.to(dtype)
    return tensors


def write_checkpoint(
    folder: Path,
    config: dict[str, Any] = LLAMA,
    tensors: dict[str, Tensor] | None = None,
    *,
    dtype: torch.dtype = torch.float16,
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """A checkpoint folder: ``config.json``, and one safetensors file or several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if tensors is None:
        tensors = random_tensors(config, dtype, seed)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(part, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
