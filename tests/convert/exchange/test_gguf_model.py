"""What llama.cpp is told of a model, and what it cannot compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from int8conv.convert.exchange.gguf_model import (
    TARGETS,
    find_target,
    frequency_factors,
    model_fields,
    row_order,
    tensor_name,
)
from int8conv.errors import UnsupportedFeatureError, UnsupportedModelError
from int8conv.runtime.decoder.rotary import Rotary
from int8conv.runtime.models.architecture import Architecture, read_architecture
from int8conv.runtime.models.config import Rope

CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
GEMMA: dict[str, Any] = CONFIG | {"model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}  # fmt: skip


def architecture(**changes: Any) -> Architecture:
    return read_architecture(CONFIG | changes, ())


@pytest.mark.parametrize("family", TARGETS)
def test_every_tensor_has_a_name_of_its_own(family: str) -> None:
    changes = GEMMA if family.startswith("gemma") else {"head_dim": 16}
    found = architecture(**changes | {"model_type": family})
    assert find_target(found, "f").name == TARGETS[family].name
    names = [tensor_name(module, "weight") for module in found.modules]
    assert len(set(names)) == len(names) == len(found.modules)
    assert "token_embd.weight" in names
    assert "blk.6.ffn_down.weight" in names


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hidden_act": "gelu"}, "another activation"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "scaling of rotary positions"),
        (GEMMA | {"query_pre_attn_scalar": 17}, "another scale of scores"),
        (GEMMA | {"sliding_window_pattern": 3}, "windows in other layers"),
        (GEMMA | {"rope_local_base_freq": 5e3}, "a rotary base of its own"),
        (GEMMA | {"attn_logit_softcapping": 5.0}, "a soft cap of scores"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UnsupportedFeatureError, match=text):
        find_target(architecture(**changes), "f")


def test_other_families_are_refused_by_name() -> None:
    found = architecture(model_type="olmo2")
    with pytest.raises(UnsupportedModelError, match=r"expected llama or mistral .* found olmo2"):
        find_target(found, "f")


def test_numbers() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    found = architecture(rope_scaling=scaling, rope_theta=5e5, rms_norm_eps=1e-5)
    fields = dict(model_fields(found.config, TARGETS["llama"]))
    assert fields["head_count_kv"] == 2
    assert fields["key_length"] == fields["rope_dimension_count"] == 16
    assert fields["rope_freq_base"] == 5e5
    assert fields["rope_scaling_type"] == "yarn"
    assert fields["rope_scaling_orig_ctx_len"] == 128
    assert fields["layer_norm_rms_eps"] == 1e-5
    windows = dict(model_fields(architecture(**GEMMA).config, TARGETS["gemma3_text"]))
    assert windows["sliding_window"] == 8


def test_frequencies_of_llama_3_are_the_runtimes() -> None:
    rope = Rope(5e5, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192)  # fmt: skip
    factors = frequency_factors(rope, 64)
    assert factors is not None
    plain = Rotary(Rope(5e5), 64).frequencies(1)
    expected = Rotary(rope, 64).frequencies(1)
    torch.testing.assert_close(plain / torch.from_numpy(factors), expected, rtol=1e-5, atol=0)
    assert frequency_factors(Rope(5e5), 64) is None


def test_rows_of_adjacent_pairs() -> None:
    """A dot product of rotated heads is the same in either order, if pairs move together."""
    found = architecture()
    q = found.layer(0)["q"]
    order = row_order(q, found.config, TARGETS["llama"])
    assert order is not None
    assert [order(row) for row in range(18)] == [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15, 16, 24]  # fmt: skip
    assert sorted(order(row) for row in range(64)) == list(np.arange(64))
    assert row_order(found.layer(0)["v"], found.config, TARGETS["llama"]) is None
    assert row_order(q, found.config, TARGETS["qwen2"]) is None
