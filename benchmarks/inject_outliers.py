"""Put outlier features into a checkpoint without changing what it computes.

    python benchmarks/inject_outliers.py SOURCE OUT --magnitude 32 [--channels 6] [--seed 0]

In every layer, some channels of each norm's gain (and bias) are multiplied by the magnitude, and those columns of the weights
behind it divided by it. Likewise some rows of the value projection against columns of the output projection, and of the FFN's
up projection against columns of the down projection (its activation is linear in them, or ReLU). With a power of two only
weights that become subnormal are rounded. Families: llama, opt.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NAMES = {
    "llama": {
        "layer": "model.layers.{}.", "norms": {
            "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
        },
        "v": "self_attn.v_proj", "o": "self_attn.o_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    },
    "opt": {
        "layer": "model.decoder.layers.{}.", "norms": {
            "self_attn_layer_norm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "final_layer_norm": ["fc1"],
        },
        "v": "self_attn.v_proj", "o": "self_attn.out_proj", "up": "fc1", "down": "fc2",
    },
}  # fmt: skip


def inject(source: Path, out: Path, magnitude: float, channels: int = 6, seed: int = 0) -> None:
    """Write ``source`` with outliers to ``out``."""
    config = json.loads((source / "config.json").read_text())
    names = NAMES[config["model_type"]]
    tensors = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    heads = config["num_attention_heads"]
    groups = heads // config.get("num_key_value_heads", heads)
    size = config.get("head_dim", config["hidden_size"] // heads)

    def some(count: int, of: int) -> Tensor:
        return torch.randperm(of, generator=generator)[:count]

    def up(module: str, rows: Tensor) -> None:
        for kind in ("weight", "bias"):
            if f"{module}.{kind}" in tensors:
                tensors[f"{module}.{kind}"][rows] *= magnitude

    def down(module: str, columns: Tensor) -> None:
        tensors[f"{module}.weight"][:, columns] /= magnitude

    for layer in range(config["num_hidden_layers"]):
        prefix = str(names["layer"]).format(layer)
        norms: dict[str, list[str]] = names["norms"]  # type: ignore[assignment]
        for norm, linears in norms.items():
            chosen = some(channels, config["hidden_size"])
            up(prefix + norm, chosen)
            for linear in linears:
                down(prefix + linear, chosen)
        rows = some(max(1, channels // groups), tensors[f"{prefix}{names['v']}.weight"].shape[0])
        up(f"{prefix}{names['v']}", rows)
        first = rows // size * groups  # of the query heads that look at these values
        columns = torch.cat([(first + head) * size + rows % size for head in range(groups)])
        down(f"{prefix}{names['o']}", columns)
        rows = some(channels, tensors[f"{prefix}{names['up']}.weight"].shape[0])
        up(f"{prefix}{names['up']}", rows)
        down(f"{prefix}{names['down']}", rows)
    out.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, out / path.name)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--magnitude", type=float, default=32)
    parser.add_argument("--channels", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    inject(arguments.source, arguments.out, arguments.magnitude, arguments.channels, arguments.seed)
