"""Where linears of a file belong in a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from int8conv.errors import UnsupportedFeatureError
from int8conv.hf.places import Places, find_places

from .models import CONFIGS

Q = "model.layers.0.self_attn.q_proj"


def empty_model(name: str, kind: Any = AutoModelForCausalLM, **changes: Any) -> Any:
    with torch.device("meta"):
        return kind.from_config(AutoConfig.for_model(name, **CONFIGS[name] | changes))


def test_linears_are_found_under_the_base_model_too() -> None:
    assert find_places(empty_model("llama"), [Q, "lm_head"]) == Places({Q: Q, "lm_head": "lm_head"})
    found = find_places(empty_model("llama", AutoModel), [Q, "lm_head"])
    assert found == Places(
        {Q: "layers.0.self_attn.q_proj"}
    )  # without a head, as transformers has it
    assert find_places(empty_model("gpt2"), ["h.1.attn.c_attn"]).linears == {
        "h.1.attn.c_attn": "transformer.h.1.attn.c_attn"
    }


def test_embeddings_and_tied_heads_are_dequantized() -> None:
    embedding = "model.embed_tokens"
    assert find_places(empty_model("llama"), [embedding]).whole == {embedding: embedding}
    tied = find_places(empty_model("llama", tie_word_embeddings=True), [embedding, "lm_head", Q])
    assert tied.whole == {embedding: embedding, "lm_head": "lm_head"}
    assert tied.linears == {Q: Q}
    assert sorted(tied.dequantized()) == ["lm_head", embedding]


def test_experts_are_fused_in_the_order_of_their_numbers() -> None:
    experts = [
        f"model.layers.1.block_sparse_moe.experts.{i}.{w}"
        for w in ("w3", "w1", "w2")
        for i in (10, 2)
    ]
    found = find_places(empty_model("mixtral"), experts)
    parts = {
        (name, pattern.rpartition(".")[0][-2:]): paths
        for (name, pattern), paths in found.fused.items()
    }
    prefix = "model.layers.1.block_sparse_moe.experts"
    assert parts == {
        ("model.layers.1.mlp.experts.gate_up_proj", "w1"): [f"{prefix}.2.w1", f"{prefix}.10.w1"],
        ("model.layers.1.mlp.experts.gate_up_proj", "w3"): [f"{prefix}.2.w3", f"{prefix}.10.w3"],
        ("model.layers.1.mlp.experts.down_proj", "w2"): [f"{prefix}.2.w2", f"{prefix}.10.w2"],
    }
    stacked = find_places(
        empty_model("mixtral"), [f"model.layers.0.mlp.experts.down_proj.{i}" for i in (1, 0)]
    )
    assert stacked.stacks == {
        "model.layers.0.mlp.experts.down_proj": [
            f"model.layers.0.mlp.experts.down_proj.{i}" for i in (0, 1)
        ]
    }


def test_a_place_that_is_no_matrix_is_refused() -> None:
    with pytest.raises(
        UnsupportedFeatureError, match=r"'model.norm.weight': no int8 form of a LlamaRMSNorm"
    ):
        find_places(empty_model("llama"), ["model.norm"])
