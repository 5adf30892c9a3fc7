"""Linears of one input of which some were kept in 16 bits, or none; embedding and head in int8: on the GPU's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from int8conv.convert.converter import convert_checkpoint

from ....checkpoints import LLAMA, OPT, write_checkpoint
from .rehearsal import check, decoders, tokens
from .test_families import config

pytestmark = pytest.mark.usefixtures("few_programs")

SMALL = {"num_hidden_layers": 1}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gate kept": (LLAMA, {"keep": ["gate_proj"]}),
    "up kept": (LLAMA, {"keep": ["up_proj"]}),
    "q kept": (LLAMA, {"keep": ["q_proj"]}),
    "k and v kept": (LLAMA | {"attention_bias": True}, {"keep": ["[kv]_proj"]}),
    "down and o kept": (LLAMA, {"keep": ["down_proj", "o_proj"]}),
    "nothing in int8 but o": (LLAMA, {"keep": ["mlp", "[qkv]_proj"]}),
    "up of an ungated FFN kept": (OPT, {"keep": ["fc1"]}),
    "gate and up, in one, kept": (config("phi3"), {"keep": ["gate_up"]}),
    "gates of experts kept": (config("mixtral"), {"keep": [r"experts\.[12]\.w1"], "outlier_rule": "absmax"}),
    "head and embedding in int8": (LLAMA, {"quantize": ["lm_head", "embed_tokens"]}),
    "tied embedding in int8": (LLAMA | {"tie_word_embeddings": True}, {"quantize": ["embed_tokens"]}),
}  # fmt: skip


EIGHT_BITS = ["gate kept", "k and v kept", "head and embedding in int8"]


@pytest.mark.parametrize(
    ("case", "mode"),
    [*((case, "w8a16") for case in CASES), *((case, "w8a8") for case in EIGHT_BITS)],
)
def test_logits(case: str, mode: Any, tmp_path: Path) -> None:
    values, options = CASES[case]
    convert_checkpoint(
        write_checkpoint(tmp_path / "source", values | SMALL), tmp_path / "int8", **options
    )
    check(*(decoder.forward(tokens(1, 3)) for decoder in decoders(tmp_path / "int8", mode)))


@pytest.mark.parametrize(
    ("options", "mode", "needs_host_sync"),
    [({}, None, False), ({}, "w8a8", True), ({"keep": [r"experts\.1\.w1"]}, None, True)],
)
def test_which_mixtures_ask_for_the_experts_of_a_step(
    options: dict[str, Any], mode: Any, needs_host_sync: bool, tmp_path: Path
) -> None:
    """A step that asks is not captured in a CUDA graph."""
    values = config("mixtral") | SMALL
    convert_checkpoint(write_checkpoint(tmp_path / "source", values), tmp_path / "int8", **options)
    gpu, cpu, _ = decoders(tmp_path / "int8", mode)
    assert gpu.needs_host_sync == needs_host_sync
    assert cpu.needs_host_sync
