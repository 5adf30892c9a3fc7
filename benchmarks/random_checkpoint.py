"""Write a Llama-shaped checkpoint of random fp16 weights, a tensor at a time: what the benchmarks convert and run.

    python benchmarks/random_checkpoint.py FOLDER [--layers 22]

The default is a 1.1-billion-parameter shape: hidden 2048, 22 layers, 32 heads, 4 KV heads, FFN 5632, vocabulary 32000.
"""

from __future__ import annotations

import argparse
import json
from math import prod
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from int8conv.formats.int8.layout import TensorSpec
from int8conv.formats.safetensors.header import TensorInfo, build_header
from int8conv.runtime.models.architecture import read_architecture

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
SHARDS = 3


def write(folder: Path, layers: int) -> None:
    """Three shards, an index and a config; the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"num_hidden_layers": layers}
    modules = read_architecture(config, ()).modules
    tensors = [TensorSpec(f"{m.path}.weight", "F16", m.shape) for m in modules]
    size = -(-len(tensors) // SHARDS)
    weight_map = {}
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        part = tensors[number * size : (number + 1) * size]
        write_shard(folder / name, part, seed=number)
        weight_map |= {t.name: name for t in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    _write_tokenizer(folder, config["vocab_size"])


def _write_tokenizer(folder: Path, size: int) -> None:
    """A word for each token: some peers convert nothing without a tokenizer."""
    words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, size))]
    vocabulary = {word: number for number, word in enumerate(words)}
    Tokenizer(WordLevel(vocabulary, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_shard(path: Path, tensors: list[TensorSpec], seed: int) -> None:
    """One safetensors file of normal fp16 values (norms of ones)."""
    rng = np.random.default_rng(seed)
    infos, position = [], 0
    for t in tensors:
        infos.append(TensorInfo(t.name, t.dtype, t.shape, position, position + t.nbytes))
        position += t.nbytes
    with path.open("wb") as file:
        file.write(build_header(infos, {"format": "pt"}, alignment=8))
        for t in tensors:
            if len(t.shape) == 1:
                file.write(np.ones(t.shape, np.float16).tobytes())
                continue
            for first in range(0, t.shape[0], 1024):
                rows = min(1024, t.shape[0] - first)
                block = rng.standard_normal(rows * prod(t.shape[1:]), np.float32) * 0.02
                file.write(block.astype(np.float16).tobytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"])
    arguments = parser.parse_args()
    write(arguments.folder, arguments.layers)
