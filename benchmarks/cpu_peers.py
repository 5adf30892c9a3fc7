"""The fastest peer of the CPU runtime, where it is installed: llama.cpp's Q8_0, through llama-cpp-python and gguf.

It gives a function that adds tokens to a sequence, or starts a new one, for ``cpu.measure``; its file is made beside the source
checkpoint, once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import safe_open

Step = Callable[[list[int], bool], object]
"""Tokens to add; whether they start a new sequence."""


def installed() -> list[str]:
    """Names of the peers."""
    needs = {"llama.cpp Q8_0": ("llama_cpp", "gguf")}
    return [
        name for name, modules in needs.items() if all(importlib.util.find_spec(m) for m in modules)
    ]


def load(name: str, source: Path, capacity: int) -> Step:
    """A peer's step on a source checkpoint."""
    assert name in installed()
    return _llama_cpp(source, capacity)


def prepare(name: str, source: Path) -> None:
    """Convert the source for a peer, in a process of its own, unless that was done before."""
    if name in installed() and not _gguf(source).exists():
        subprocess.run([sys.executable, __file__, str(source)], check=True)


def _gguf(source: Path) -> Path:
    return source.parent / "peer.gguf"


_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(source: Path) -> None:
    """A Llama-shaped checkpoint as Q8_0. Rows of q and k stay in the source's order: with random weights that changes no speed."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    config = json.loads((source / "config.json").read_text())
    writer = GGUFWriter(_gguf(source), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    words = [f"w{number}".encode() for number in range(config["vocab_size"])]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([1] * len(words))
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                array = tensors.get_tensor(name).astype(np.float32)
                if array.ndim == 1:
                    writer.add_tensor(_gguf_name(name), array)
                    continue
                data = quants.quantize(array, GGMLQuantizationType.Q8_0)
                writer.add_tensor(_gguf_name(name), data, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    path = name.removesuffix(".weight")
    if path in _NAMES:
        return f"{_NAMES[path]}.weight"
    _, _, layer, rest = path.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}.weight"


def _llama_cpp(source: Path, capacity: int) -> Step:
    from llama_cpp import Llama

    threads = os.cpu_count() or 1
    model = Llama(
        str(_gguf(source)), n_ctx=capacity + 64, n_threads=threads, n_threads_batch=threads, verbose=False
    )  # fmt: skip

    def step(tokens: list[int], fresh: bool) -> object:
        if fresh:
            model.reset()
        return model.eval(tokens)

    return step


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]))
