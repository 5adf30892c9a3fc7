"""The inputs of the campaign: for each kind a good one, what damages it, and the commands that read it."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from hostile_good import (
    CONFIG,
    INDEX,
    MANIFEST,
    MESSAGE,
    ROPES,
    Commands,
    chat,
    dry,
    fresh,
    generate,
    good,
    look,
    make_converted,
    make_source,
    quiet,
    read_shard,
    real,
    write_raw,
    write_source,
)
from hostile_texts import change_old_tokenizer, change_template, change_tokenizer
from mutate import ELSEWHERE, NUMBERS, mutated_bytes, mutated_json
from safetensors.torch import load_file

from int8conv.cli import main
from int8conv.convert.converter import convert_checkpoint
from int8conv.runtime.models.families import FAMILIES


@dataclass(frozen=True)
class Mutated:
    """An area by three functions."""

    name: str
    make: Callable[[Path], None]
    change: Callable[[Path, random.Random], None]
    run: Callable[[Path, int], Commands]

    def damage(self, folder: Path, rng: random.Random, number: int) -> None:
        fresh(folder)
        self.change(folder, rng)

    def commands(self, folder: Path, number: int) -> Commands:
        return self.run(folder, number)


def change_json(name: str) -> Callable[[Path, random.Random], None]:
    def change(folder: Path, rng: random.Random) -> None:
        path = folder / "m" / name
        path.write_bytes(mutated_json(rng, json.loads(good(path))))

    return change


def change_header(folder: Path, rng: random.Random) -> None:
    shards = sorted((folder / "m").glob("*.safetensors"))
    path = shards[0]
    data = good(path)
    (length,) = struct.unpack("<Q", data[:8])
    alignment = 4096 if length > 3000 and (8 + length) % 4096 == 0 else 8
    if rng.random() < 0.6:
        text = mutated_json(rng, json.loads(data[8 : 8 + length]))
        write_raw(path, text, data[8 + length :], alignment)
    else:
        path.write_bytes(mutated_bytes(rng, data, len(data[: 8 + length].rstrip()) + 40))


VALUES: Final[list[Any]] = [
    *NUMBERS, *ELSEWHERE[:4], None, True, False, [], {}, [[]], {"a": 1}, "silu", "1", 1e999, -1e999, 64, 32, 16, 8, 4,
    3, 10**9, 10**4, [1] * 40, ["\x1b[31m"], "\x1b]0;x\x07", "\u202eabc", "fp8", "int8conv", 1e-300, [1e999] * 4, [0.0] * 4,
]  # fmt: skip
KEYS: Final = [
    "head_dim", "rope_theta", "partial_rotary_factor", "layer_types", "sliding_window", "num_experts", "num_local_experts",
    "num_experts_per_tok", "n_routed_experts", "moe_intermediate_size", "attention_bias", "mlp_bias", "quantization_config",
    "rope_scaling", "rope_parameters", "text_config", "architectures", "torch_dtype", "use_sliding_window", "max_window_layers",
    "decoder_sparse_step", "mlp_only_layers", "shared_expert_intermediate_size", "query_pre_attn_scalar", "final_logit_softcapping",
    "attn_logit_softcapping", "sliding_window_pattern", "original_max_position_embeddings", "rope_local_base_freq", "bogus\x1b[2J",
    "embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier", "logit_scale", "clip_qkv", "qk_layernorm",
    "use_parallel_residual", "rotary_pct", "rotary_dim", "n_head", "n_embd", "n_layer", "n_positions", "n_inner", "ffn_dim", "alibi",
    "new_decoder_architecture", "multi_query", "num_kv_heads", "num_ln_in_parallel_attn", "parallel_attn", "do_layer_norm_before",
    "word_embed_proj_dim", "norm_topk_prob", "layer_norm_eps", "layer_norm_epsilon", "hidden_activation", "activation_function",
]  # fmt: skip


def change_config(folder: Path, rng: random.Random) -> None:
    path = folder / "m" / CONFIG
    config = json.loads(good(path))
    if rng.random() < 0.5:
        config["rope_scaling"] = rng.choice(ROPES)
    if rng.random() < 0.4:
        config["model_type"] = rng.choice(sorted(FAMILIES))
    if rng.random() < 0.4:
        path.write_bytes(mutated_json(rng, config))
        return
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = json.loads(json.dumps(rng.choice(VALUES)))
        rope = config.get("rope_scaling")
        if isinstance(rope, dict) and rng.random() < 0.4:
            rope[
                rng.choice([*rope, "attention_factor", "mscale", "mscale_all_dim", "truncate"])
            ] = value
        else:
            config[rng.choice([*config, *KEYS])] = value
    path.write_bytes(json.dumps(config).encode("utf-8", "surrogatepass"))


def run_config(folder: Path, number: int) -> Commands:
    if number % 4 == 0:
        lone = folder / "lone.json"
        shutil.copy(folder / "m" / CONFIG, lone)
        return [(["footprint", str(lone), "--table", "--vram", "8GB"], "")]
    if number % 8 == 1:
        return [(generate(folder), "")]
    if number % 4 == 2:
        return [(["footprint", str(folder / "m")], "")]
    return [(dry(folder), "")]


def run_source(folder: Path, number: int) -> Commands:
    if number % 10 == 0:
        return [(real(folder), "")]
    return [(["footprint", str(folder / "m")] if number % 10 == 1 else dry(folder), "")]


def run_converted(folder: Path, number: int) -> Commands:
    return [(generate(folder) if number % 8 == 0 else look(folder), "")]


def run_generate(folder: Path, _: int) -> Commands:
    return [(generate(folder), "")]


def run_chat(folder: Path, _: int) -> Commands:
    return [(chat(folder), MESSAGE)]


def make_statistics(folder: Path) -> None:
    write_source(folder / "m")
    quiet("calibrate", folder / "m", "-o", folder / "stats", "--tokens", "64", "--context", "16")
    shutil.copy(folder / "stats", folder / "kept")


def change_statistics(folder: Path, rng: random.Random) -> None:
    path = folder / "stats"
    data = good(path)
    header, payload = read_shard(folder / "kept")
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(mutated_bytes(rng, data, len(data) - len(payload) + 200))
    elif kind == 1:
        write_raw(path, mutated_json(rng, header), payload)
    elif kind == 2:
        about = mutated_json(rng, json.loads(header["__metadata__"]["stats"])).decode(
            "utf-8", "replace"
        )
        header["__metadata__"]["stats"] = about
        write_raw(path, json.dumps(header).encode(), payload)
    else:
        write_raw(
            path,
            json.dumps(header).encode(),
            mutated_bytes(rng, payload)[: len(payload)].ljust(len(payload), b"\0"),
        )


def run_statistics(folder: Path, number: int) -> Commands:
    if number % 2:
        return [
            (
                [
                    "calibrate",
                    "--merge",
                    str(folder / "kept"),
                    str(folder / "stats"),
                    "-o",
                    str(folder / "out.stats"),
                ],
                "",
            )
        ]
    return [
        (["convert", str(folder / "m"), str(folder / "out"), "--stats", str(folder / "stats")], "")
    ]


def make_journal(folder: Path) -> None:
    """A conversion that was stopped."""
    write_source(folder / "m", layers=2)
    seen = 0

    def stop(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen > 8:
            raise KeyboardInterrupt

    try:
        convert_checkpoint(
            folder / "m",
            folder / "out",
            outliers="none",
            jobs=1,
            max_shard_bytes=24000,
            progress=stop,
        )
    except KeyboardInterrupt:
        (folder / ".out.partial").rename(folder / "stopped")
        return
    raise AssertionError("it was not stopped")


def change_journal(folder: Path, rng: random.Random) -> None:
    stopped, workspace = folder / "stopped", folder / ".out.partial"
    shutil.copytree(stopped, workspace)
    files = sorted(path for path in workspace.rglob("*") if path.is_file() and path.stat().st_size)
    journal = workspace / "journal.jsonl"
    path = journal if rng.random() < 0.7 else rng.choice(files)
    if path == journal and rng.random() < 0.6:
        lines = path.read_bytes().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = mutated_json(rng, json.loads(lines[at]))
        path.write_bytes(b"\n".join(lines) + b"\n")
    else:
        path.write_bytes(mutated_bytes(rng, path.read_bytes()))
    if rng.random() < 0.05:
        target = rng.choice((folder / "secret", Path("/etc/passwd"), Path("/dev/zero")))
        path.unlink()
        path.symlink_to(target)
    elif rng.random() < 0.03:
        path.unlink()
        os.mkfifo(path)


def run_journal(folder: Path, _: int) -> Commands:
    return [
        (real(folder, "--max-shard-size", "24000"), ""),
        (["inspect", str(folder / "out"), "--verify", "--against", str(folder / "m")], ""),
    ]


def make_pickle(folder: Path) -> None:
    write_source(folder / "m")
    tensors = {
        n: t for p in sorted((folder / "m").glob("*.safetensors")) for n, t in load_file(p).items()
    }
    for path in [*(folder / "m").glob("*.safetensors"), folder / "m" / INDEX]:
        path.unlink()
    torch.save(tensors, folder / "m" / "pytorch_model.bin")


def change_pickle(folder: Path, rng: random.Random) -> None:
    path = folder / "m" / "pytorch_model.bin"
    data = good(path)
    if rng.random() < 0.4:
        path.write_bytes(mutated_bytes(rng, data))
        return
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new,
    ):
        for info in old.infolist():
            inner = old.read(info)
            new.writestr(
                info.filename,
                mutated_bytes(rng, inner) if info.filename.endswith("data.pkl") else inner,
            )


AREAS: Final = {
    area.name: area
    for area in (
        Mutated("source header", make_source, change_header, run_source),
        Mutated("source index", make_source, change_json(INDEX), run_source),
        Mutated("source config", make_source, change_config, run_config),
        Mutated("header", make_converted, change_header, run_converted),
        Mutated("index", make_converted, change_json(INDEX), run_converted),
        Mutated("manifest", make_converted, change_json(MANIFEST), run_converted),
        Mutated("config", make_converted, change_config, run_converted),
        Mutated(
            "generation config", make_converted, change_json("generation_config.json"), run_generate
        ),
        Mutated("tokenizer", make_converted, change_tokenizer, run_generate),
        Mutated("old tokenizer", make_converted, change_old_tokenizer, run_chat),
        Mutated("template", make_converted, change_template, run_chat),
        Mutated("statistics", make_statistics, change_statistics, run_statistics),
        Mutated("journal", make_journal, change_journal, run_journal),
        Mutated("pickle", make_pickle, change_pickle, run_source),
    )
}


def undamaged(area: Any, folder: Path) -> None:
    """Raise AssertionError if a command fails at the good input: then nothing that it refuses would mean anything."""
    if not isinstance(area, Mutated):
        return
    for number in range(3):  # each kind of command is among them
        fresh(folder)
        for arguments, stdin in area.commands(folder, number):
            sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()))
            if "lone.json" not in arguments[1]:
                main.main(arguments, prog_name="int8conv", standalone_mode=False)
    fresh(folder)
