"""Inputs by hand, for the campaign: what no mutation comes upon."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import hostile_pickles
from hostile_good import (
    CONFIG,
    INDEX,
    MANIFEST,
    MESSAGE,
    SMALL,
    Commands,
    chat,
    dry,
    fresh,
    generate,
    look,
    quiet,
    read_shard,
    real,
    write_raw,
    write_source,
)

Change = Callable[[Path], object]
"""Of the folder ``m``."""


@dataclass(frozen=True)
class Case:
    """A change of a good source or converted folder, and the commands that meet it."""

    kind: str
    """source or converted"""
    change: Change
    commands: tuple[str, ...]


def config(**values: Any) -> Change:
    def change(m: Path) -> None:
        (m / CONFIG).write_text(json.dumps(json.loads((m / CONFIG).read_text()) | values))

    return change


def text(name: str, content: str | bytes) -> Change:
    def change(m: Path) -> None:
        (m / name).write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        )

    return change


def fifo(name: str) -> Change:
    def change(m: Path) -> None:
        (m / name).unlink(missing_ok=True)
        os.mkfifo(m / name)

    return change


def link(name: str, target: str) -> Change:
    def change(m: Path) -> None:
        (m / name).unlink(missing_ok=True)
        (m / name).symlink_to(target)

    return change


def as_weights(make: Callable[[str], Change]) -> Callable[[str], Change]:
    """With nothing else to take for weights."""

    def changes(name: str) -> Change:
        def change(m: Path) -> None:
            for path in (*m.glob("*.safetensors"), m / INDEX):
                path.unlink()
            make(name)(m)

        return change

    return changes


def sparse(name: str) -> Change:
    def change(m: Path) -> None:
        with (m / name).open("ab") as file:
            file.truncate(1 << 40)

    return change


def claim(
    dtype: str, shape: list[int], nbytes: int, name: str = "model.layers.0.mlp.up_proj.weight"
) -> Change:
    """A tensor in a shard of its own, of bytes that a sparse file has for nothing."""

    def change(m: Path) -> None:
        index = json.loads((m / INDEX).read_text())
        index["weight_map"][name] = "extra.safetensors"
        for shard in m.glob("model-*.safetensors"):
            header, payload = read_shard(shard)
            if name in header:
                header["elsewhere"] = header.pop(name)
                index["weight_map"]["elsewhere"] = shard.name
                write_raw(shard, json.dumps(header).encode(), payload)
        (m / INDEX).write_text(json.dumps(index))
        header = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}}
        write_raw(m / "extra.safetensors", json.dumps(header).encode(), b"")
        with (m / "extra.safetensors").open("ab") as file:
            file.truncate(file.tell() + nbytes)

    return change


def named(name: str) -> Change:
    """A tensor with such a name."""

    def change(m: Path) -> None:
        index = json.loads((m / INDEX).read_text())
        index["weight_map"][name] = "extra.safetensors"
        (m / INDEX).write_text(json.dumps(index))
        write_raw(
            m / "extra.safetensors",
            json.dumps({name: {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}).encode(),
            bytes(4),
        )

    return change


READ: Final = ("dry", "footprint")
EVIL: Final = "\x1b]0;owned\x07\x1b[2J\u202e\n\x9b31m"
DEEP: Final = {"a": [[[[[[[[[[]]]]]]]]]]}
MOE: Final = {"model_type": "qwen3_moe", "num_experts_per_tok": 2, "moe_intermediate_size": 32}
HUGE: Final = 10**400
ROPE: Final = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [1.0] * 4,
    "original_max_position_embeddings": 1,
}

CASES: Final[list[Case]] = [
    *(Case("source", config(**{key: value}), READ)
      for key in ("num_hidden_layers", "head_dim", "num_attention_heads", "vocab_size", "max_position_embeddings", "intermediate_size")
      for value in (10**9, HUGE, -1, 0, 1.5, "x", [], {}, True, 1e308, float("inf"))),
    *(Case("source", config(rope_scaling={"rope_type": kind, "factor": value, "original_max_position_embeddings": 32}), (*READ, "generate"))
      for kind in ("linear", "dynamic", "yarn", "llama3", "longrope") for value in (1e308, 1e-308, float("inf"), float("nan"), HUGE, 1e12)),
    *(Case("source", config(rope_scaling=ROPE | change), READ)
      for change in ({}, {"long_factor": [1e999] * 4}, {"long_factor": [0] * 4}, {"short_factor": [[]] * 4}, {"factor": 1e999}, {"long_factor": []})),
    Case("source", config(**MOE, num_experts=10**4, num_hidden_layers=10**4), READ),
    Case("source", config(**MOE, num_experts=10**9), READ), Case("source", config(num_attention_heads=64), READ),
    Case("source", config(**SMALL, id2label={str(i): "x" * 50 for i in range(200_000)}), READ),
    *(Case("source", config(quantization_config=value), READ)
      for value in ([], "x", {"quant_method": []}, {"quant_method": {}}, {"quant_method": 1}, {"quant_method": "fp8", "weight_block_size": [0, 0]},
                    {"quant_method": "fp8", "weight_block_size": [1e999, "x"]}, {"quant_method": EVIL}, DEEP)),
    *(Case("source", text(CONFIG, content), READ)
      for content in ("[" * 10**5, '{"a":' * 900 + "0" + "}" * 900, '{"a": [' + "{}," * 3_000_000 + "0]}", "\ufeff{}", "\0", '{"model_type": "\ud800"}',
                      '{"model_type": ' + json.dumps(EVIL) + "}", '{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}")),
    *(Case("source", make(name), (*READ, "real"))
      for name in (CONFIG, INDEX, "tokenizer.json", "LICENSE", "generation_config.json", "model-00001-of-00002.safetensors")
      for make in (fifo, lambda n: link(n, "/dev/zero"), lambda n: link(n, "../secret"), lambda n: link(n, n), sparse)),
    *(Case("converted", make(name), ("look", "generate", "chat"))
      for name in (CONFIG, INDEX, MANIFEST, "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
      for make in (fifo, lambda n: link(n, "/dev/zero"), lambda n: link(n, n), sparse)),
    *(Case("source", claim(dtype, shape, nbytes, name), (*READ, "real"))
      for dtype, shape, nbytes, name in (
          ("F16", [2**40, 0], 0, "model.layers.0.mlp.up_proj.weight"), ("F16", [10**9, 0, 64], 0, "model.layers.0.mlp.experts.up_proj"),
          ("F16", [10**9, 1, 1], 2 * 10**9, "model.layers.0.mlp.experts.up_proj"), ("F8_E4M3", [2, 2, 32, 32], 4096, "model.layers.0.mlp.up_proj.weight"),
          ("F16", [10**6, 10**6], 2 * 10**12, "model.embed_tokens.weight"), ("I8", [64, 32], 2048, "model.layers.0.mlp.up_proj.weight"),
          ("F16", [], 2, "model.norm.weight"), ("F64", [32], 256, "model.norm.weight"), ("BOOL", [32], 32, "model.norm.weight"))),
    *(Case("source", named(name), (*READ, "real"))
      for name in (EVIL, "", ".", "a/../../b", "x" * 100_000, "model.layers." + "9" * 5000 + ".mlp.up_proj.weight", "\0", "a.weight", "int8conv.padding.0")),
    *(Case("converted", text("chat_template.jinja", content), ("chat",))
      for content in ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 'a' * 3000000000 }}", "{{ 9 ** (9 ** 9) }}",
                      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ raise_exception('" + EVIL.replace("\n", "") + "') }}", "{{ '\\ud800' }}",
                      "{% set ns = namespace(a='aa') %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}", "{% include '/etc/passwd' %}")),
    *(Case("converted", text("generation_config.json", json.dumps({"do_sample": True, "max_new_tokens": 2} | values)), ("generate",))
      for values in ({"temperature": 1e-300}, {"temperature": 5e-324}, {"temperature": 1e15}, {"top_p": 5e-324}, {"top_p": 1e-30}, {"min_p": 1},
                     {"repetition_penalty": 1e-300}, {"repetition_penalty": 9e15}, {"top_k": 2**52}, {"eos_token_id": [10**400, -1]},
                     {"stop_strings": ["x"] * 10_000}, {"stop_strings": ["x" * 10**6]}, {"temperature": 1e999}, {EVIL: 1})),
    *(Case("source", change, (*READ, "real")) for change in hostile_pickles.CHANGES),
    *(Case("source", make(hostile_pickles.FILE), (*READ, "real")) for make in (as_weights(fifo), as_weights(lambda n: link(n, "/dev/zero")), as_weights(sparse))),
]  # fmt: skip


class Scripted:
    """The cases as an area: a case's number is its place in the list."""

    name = "scripted"
    cases = CASES

    def make(self, folder: Path) -> None:
        write_source(folder / "sources")
        quiet(
            "convert",
            folder / "sources",
            folder / "converteds",
            "--outliers",
            "data-free",
            "--max-shard-size",
            "24kB",
        )

    def damage(self, folder: Path, rng: random.Random, number: int) -> None:
        fresh(folder)
        case = self.cases[number]
        shutil.rmtree(folder / "m", ignore_errors=True)
        shutil.copytree(folder / f"{case.kind}s", folder / "m")
        case.change(folder / "m")

    def commands(self, folder: Path, number: int) -> Commands:
        known = {
            "dry": dry(folder), "real": real(folder), "look": look(folder), "generate": generate(folder), "chat": chat(folder),
            "footprint": ["footprint", str(folder / "m")],
        }  # fmt: skip
        return [(known[name], MESSAGE) for name in self.cases[number].commands]


SCRIPTED: Final = Scripted()
