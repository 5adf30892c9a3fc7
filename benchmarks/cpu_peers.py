"""Peers of the CPU runtime, where they are installed: llama.cpp's Q8_0 (llama-cpp-python and gguf), CTranslate2's int8, and
LLM.int8() itself (transformers and bitsandbytes).

Each gives a function that adds tokens to a sequence, or starts a new one, for ``cpu.measure``; files of their own are made beside
the source checkpoint, once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import convert_peers
import numpy as np
from safetensors import safe_open

Step = Callable[[list[int], bool], object]
"""Tokens to add; whether they start a new sequence."""


def installed() -> list[str]:
    """Names of the peers."""
    return [
        name
        for name, (modules, _, _) in PEERS.items()
        if all(importlib.util.find_spec(module) for module in modules)
    ]


def load(name: str, source: Path, capacity: int) -> Step:
    """A peer's step on a source checkpoint, for at most ``capacity`` tokens."""
    return PEERS[name][2](source, capacity)


def prepare(name: str, source: Path) -> None:
    """Convert the source for a peer, in a process of its own, unless that was done before."""
    _, file, _ = PEERS[name]
    if file and not (source.parent / file).exists():
        subprocess.run([sys.executable, __file__, name, str(source)], check=True)


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


def _ctranslate2(source: Path, capacity: int) -> Step:
    import ctranslate2

    folder = source.parent / "peer.ct2"
    model = ctranslate2.Generator(
        str(folder), device="cpu", compute_type="int8", intra_threads=os.cpu_count() or 1
    )
    words = json.loads((folder / "vocabulary.json").read_text())
    results: Iterator[object] = iter(())

    def step(tokens: list[int], fresh: bool) -> object:
        """What follows a prompt is its own choice: it takes no tokens one by one."""
        nonlocal results
        if fresh:
            prompt = [words[token] for token in tokens]
            results = model.generate_tokens(prompt, max_length=capacity, end_token=[])
        return next(results)

    return step


def _bitsandbytes(source: Path, _capacity: int) -> Step:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float16, quantization_config=settings, device_map="cpu"
    )
    return transformers_step(model.eval())


def transformers_step(model: Any) -> Step:
    """The step of a model of transformers."""
    import torch

    cache = None

    @torch.inference_mode()
    def step(tokens: list[int], fresh: bool) -> object:
        nonlocal cache
        past = None if fresh else cache
        out = model(torch.tensor([tokens]), past_key_values=past, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        return out.logits

    return step


PEERS: dict[str, tuple[tuple[str, ...], str | None, Callable[[Path, int], Step]]] = {
    "llama.cpp Q8_0": (("llama_cpp", "gguf"), "peer.gguf", _llama_cpp),
    "CTranslate2 int8": (("ctranslate2", "transformers"), "peer.ct2", _ctranslate2),
    "bitsandbytes int8": (("bitsandbytes", "transformers", "accelerate"), None, _bitsandbytes),
}
"""Name -> the modules it needs, what is made for it beside the source, and its step."""


def main(name: str, source: Path) -> None:
    """Make what a peer needs."""
    if name.startswith("llama.cpp"):
        write_gguf(source)
    else:
        convert_peers.ctranslate2(source, source.parent / "peer.ct2")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
