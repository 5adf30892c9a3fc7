"""Good inputs of the campaign against hostile ones, and the commands that read them."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from int8conv.cli import main

CONFIG, INDEX, MANIFEST = "config.json", "model.safetensors.index.json", "int8conv.json"
SMALL: Final[dict[str, Any]] = {
    "model_type": "llama", "vocab_size": 272, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ROPES: Final[list[dict[str, Any]]] = [
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1},
    {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
     "original_max_position_embeddings": 32},
    {"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0},
]  # fmt: skip
TEMPLATE: Final = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] | trim + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
MESSAGE: Final = "hello there\n"


def quiet(*arguments: object) -> None:
    """A command that must succeed."""
    main.main([str(each) for each in arguments], prog_name="int8conv", standalone_mode=False)


def write_source(
    folder: Path, config: dict[str, Any] = SMALL, *, shards: int = 2, layers: int = 1
) -> Path:
    """A small Llama with a tokenizer and a template."""
    folder.mkdir(parents=True)
    random_ = torch.Generator().manual_seed(0)
    hidden, inner, vocab = (
        int(SMALL[k]) for k in ("hidden_size", "intermediate_size", "vocab_size")
    )
    tensors = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 2, hidden), "self_attn.v_proj": (hidden // 2, hidden),
            "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }.items():  # fmt: skip
            tensors[f"model.layers.{layer}.{name}.weight"] = shape
    values = {n: (torch.randn(s, generator=random_) * 0.1).half() for n, s in tensors.items()}
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(values.items())[number::shards])
        save_file(part, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / CONFIG).write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {
        token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet, "he", "ll", "th"])
    }
    merges = [("h", "e"), ("l", "l"), ("t", "h")]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": "<s>",
                "eos_token": {"content": "</s>"},
                "chat_template": TEMPLATE,
                "add_bos_token": True,
            }
        )
    )
    (folder / "generation_config.json").write_text(
        json.dumps(
            {
                "do_sample": True,
                "temperature": 0.7,
                "top_k": 5,
                "top_p": 0.9,
                "max_new_tokens": 2,
                "eos_token_id": [2],
                "stop_strings": ["zz"],
            }
        )
    )


Commands = list[tuple[list[str], str]]


def read_shard(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_raw(path: Path, text: bytes, payload: bytes, alignment: int = 8) -> None:
    text += b" " * (-(8 + len(text)) % alignment)
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)


def fresh(folder: Path) -> None:
    """Take away what the last case made."""
    for each in folder.iterdir() if folder.exists() else ():
        if each.name.startswith((".out", "out")):
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()


def dry(folder: Path, *more: str) -> list[str]:
    return [
        "convert",
        str(folder / "m"),
        str(folder / "out"),
        "--dry-run",
        "--outliers",
        "none",
        *more,
    ]


def real(folder: Path, *more: str) -> list[str]:
    return [
        "convert",
        str(folder / "m"),
        str(folder / "out"),
        "--outliers",
        "none",
        "--jobs",
        "1",
        *more,
    ]


def look(folder: Path) -> list[str]:
    return ["inspect", str(folder / "m"), "--verify", "--tensors"]


def generate(folder: Path) -> list[str]:
    return ["generate", str(folder / "m"), "-p", "hello there", "-n", "2", "--seed", "1"]


def chat(folder: Path) -> list[str]:
    return ["chat", str(folder / "m"), "-n", "2", "--seed", "1"]


def make_source(folder: Path) -> None:
    write_source(folder / "m")


def make_converted(folder: Path) -> None:
    write_source(folder / "source")
    quiet(
        "convert",
        folder / "source",
        folder / "m",
        "--outliers",
        "data-free",
        "--max-shard-size",
        "24kB",
    )
    shutil.rmtree(folder / "source")


_GOOD: dict[Path, bytes] = {}


def good(path: Path) -> bytes:
    """A file as it was before the first case of this process."""
    if path not in _GOOD:
        _GOOD[path] = path.read_bytes()
    return _GOOD[path]
