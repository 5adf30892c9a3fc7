"""Small random checkpoints, written as the hub has them, without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from int8conv.runtime.models.architecture import read_architecture

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
        if module.transposed:
            shape = shape[::-1]
        weight = torch.randn(shape, generator=generator) * 0.08
        tensors[module.tensor_name()] = (weight + (module.kind == "norm")).to(dtype)
        if module.bias:
            bias = torch.randn(module.shape[:1], generator=generator) * 0.02
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


def put_fp8(
    folder: Path,
    scales: str,
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    block: tuple[int, int] = (32, 48),
    pattern: str = "_proj.weight",
) -> dict[str, Tensor]:
    """Make the linears of a one-file checkpoint FP8, with scales for the ``tensor``, each ``row`` or each ``block``.

    Scales are called and shaped as the checkpoints on the hub have them. Returns the weights decoded by torch, float32.
    """
    tensors, decoded = load_file(folder / "model.safetensors"), {}
    for name in [n for n in tensors if pattern in n]:
        weight = tensors[name].float()
        out, in_features = weight.shape
        rows, columns = {"tensor": (out, in_features), "row": (1, in_features)}.get(scales, block)
        across = (torch.arange(out) // rows, torch.arange(in_features) // columns)
        absmax = torch.zeros(-(-out // rows), -(-in_features // columns))
        spots = (across[0][:, None].expand(weight.shape), across[1].expand(weight.shape))
        absmax.index_put_(spots, weight.abs())  # some value of each block: no maximum is needed
        scale = absmax.clamp_min(1e-4) / 8
        wide = scale[across[0]][:, across[1]]
        tensors[name] = (weight / wide).clamp(-448, 448).to(dtype)
        decoded[name] = tensors[name].float() * wide
        if scales == "block":
            tensors[f"{name}_scale_inv"] = scale
        else:
            tensors[f"{name}_scale"] = scale.reshape(()) if scales == "tensor" else scale
            tensors[name.replace("weight", "input_scale")] = torch.ones(())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    section: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    config["quantization_config"] = section | {"weight_block_size": list(block)}
    (folder / "config.json").write_text(json.dumps(config))
    return decoded


def edit_config(folder: Path, **values: Any) -> None:
    """Set keys of a checkpoint's config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
