"""``config.json`` of popular releases, fine-tunes among them: read, calibrated and run with tiny weights as transformers does.

``releases.json`` has every documented field; only sizes are made small here.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import int8conv
from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.outliers.choose import RANDOM
from int8conv.errors import UnsupportedFeatureError
from int8conv.runtime.measure.footprint_weights import parameter_count
from int8conv.runtime.models.architecture import read_architecture

from ..reference import TOLERANCE, logits, reference
from .make_reference_fields import page

RELEASES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("releases.json").read_text()
)
REFUSED = {
    "stabilityai/stablelm-2-12b": "qk_layernorm",
    "CohereForAI/c4ai-command-r-plus": "use_qk_norm",
}
PARAMETERS = {
    "openai/gpt-oss-20b": 20.9,
    "deepseek-ai/DeepSeek-V2-Lite": 15.7,
    "deepseek-ai/DeepSeek-V3": 671.0,
    "google/gemma-4-E4B-it (text)": 7.5,
    "google/gemma-4-26B-A4B-it (text)": 25.2,
    "google/gemma-4-31B-it (text)": 30.7,
}
"""In billions, as their publishers say; V3 without its 14 for predicting several tokens."""
READ_ONLY = {
    "deepseek-ai/DeepSeek-V3", "google/gemma-4-26B-A4B-it (text)", "google/gemma-4-E4B-it (text)",
}  # fmt: skip
"""With weights of random size, int8 changes which experts of the first two a token uses; the third has the features of E2B."""
RUNNABLE = [name for name in RELEASES if name not in {*REFUSED, *READ_ONLY}]

NOTED = {
    "unsloth/Llama-3.2-1B-Instruct": "unsloth_fixed",
    "a fine-tune by unsloth of Llama-3.1-8B": "model_name, unsloth_version",
    "lmsys/vicuna-7b-v1.5": "max_length",
    "TheBloke/Llama-2-7B-Chat-fp16": "do_sample, max_length, repetition_penalty, temperature, top_k, top_p",
    "unsloth/phi-4": "original_max_position_embeddings, unsloth_fixed",
    "unsloth/Qwen3-8B": "unsloth_fixed",
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": "use_qk_norm",
    "microsoft/Phi-4-mini-instruct": "full_attn_mod, interpolate_factor",
    "google/gemma-2-9b-it": "sliding_window_size",
    "unsloth/gemma-3-1b-it": "unsloth_fixed",
    "EleutherAI/gpt-j-6b": "scale_attn_weights",
    "CohereForAI/c4ai-command-r-v01": "model_max_length",
    "bigcode/starcoder2-7b": (
        "activation_function, attention_softmax_in_fp32, layer_norm_epsilon, "
        "scale_attention_softmax_in_fp32, scale_attn_weights"
    ),
}
"""The keys that nothing reads; none in the others."""

_SIZES: dict[str, Any] = {
    "hidden_size": 64, "n_embd": 64, "n_embed": 64, "intermediate_size": 96, "ffn_dim": 96, "vocab_size": 128,
    "num_hidden_layers": 3, "n_layer": 3, "n_head": 4, "rotary_dim": 8, "word_embed_proj_dim": 32, "head_dim": 16,
    "n_positions": 128, "n_ctx": 128, "max_position_embeddings": 128, "original_max_position_embeddings": 32,
    "sliding_window": 9, "max_window_layers": 1, "num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2,
    "moe_intermediate_size": 40, "max_length": 64, "n_routed_experts": 16, "first_k_dense_replace": 1,
    "global_head_dim": 32, "num_global_key_value_heads": 1, "top_k_experts": 2,
    "vocab_size_per_layer_input": 128, "kv_lora_rank": 24, "q_lora_rank": 20, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def tiny(name: str) -> dict[str, Any]:
    """A release's config with small sizes: the ratio of heads to key heads is 1, 2 or all."""
    config = dict(RELEASES[name])
    scaling = config.get("rope_scaling")
    if scaling and "original_max_position_embeddings" in scaling:
        config["rope_scaling"] = scaling | {"original_max_position_embeddings": 32}
    kv_heads, heads = config.get("num_key_value_heads"), config.get("num_attention_heads")
    if kv_heads is not None:
        config["num_key_value_heads"] = 4 if kv_heads == heads else 1 if kv_heads == 1 else 2
    if heads is not None:
        config["num_attention_heads"] = 4
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][:3]
    if (
        config["model_type"] == "gemma4_text"
    ):  # the last layer is without a window, and each kind has keys of its own
        config["layer_types"] = ["sliding_attention", "full_attention"] * 2
        config["num_kv_shared_layers"] = min(config["num_kv_shared_layers"], 2)
        config["hidden_size_per_layer_input"] = min(config["hidden_size_per_layer_input"], 8)
    if config.get("shared_expert_intermediate_size"):
        config["shared_expert_intermediate_size"] = 48
    config |= {key: size for key, size in _SIZES.items() if config.get(key) is not None}
    return config | (
        {"num_hidden_layers": len(config["layer_types"])} if config.get("layer_types") else {}
    )


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """A checkpoint with a release's config, and the transformers model of it."""
    folder, config = tmp_path / "source", tiny(request.param)
    folder.mkdir()
    written = json.dumps(config)
    small = config | {key: min(config[key], 3) for key in _TOKENS if type(config.get(key)) is int}
    small.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(small))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = reference(
            AutoConfig.from_pretrained(folder, trust_remote_code=False), folder, torch.float16
        )
    (folder / "config.json").write_text(written)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder, model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", RUNNABLE, indirect=True, ids=lambda name: name)
def test_read_calibrated_and_run(
    request: pytest.FixtureRequest, source: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, model = source
    name = request.node.callspec.params["source"]
    ids = torch.randint(4, 128, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = logits(model, ids)
    assert expected.std() > 0.005
    ours = int8conv.load(folder)
    assert (ours.logits(ids) - expected).abs().max() <= TOLERANCE
    report = convert_checkpoint(folder, tmp_path / "out")
    noted = f"config.json has keys that have no effect in this family: {NOTED.get(name)}"
    assert report.notes == ((noted, RANDOM) if name in NOTED else (RANDOM,))
    converted = int8conv.load(tmp_path / "out").logits(ids)
    assert (converted - expected).square().mean().sqrt() <= 0.1 * expected.std()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_in_full_size(name: str) -> None:
    architecture = read_architecture(RELEASES[name], ())
    assert round(parameter_count(architecture) / 1e9, 1) == PARAMETERS[name]


@pytest.mark.parametrize("name", REFUSED)
def test_features_that_change_something_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedFeatureError, match=f"the runtime lacks: '{REFUSED[name]}'"):
        read_architecture(RELEASES[name], ())


def test_as_many_releases_as_promised() -> None:
    assert len(RUNNABLE) >= 30


def test_the_table_of_fields_is_of_the_installed_transformers() -> None:
    found = Path(int8conv.__file__).parent / "runtime/models/reference_fields.py"
    assert page() == found.read_text(), "python -m tests.runtime.models.make_reference_fields"


def test_a_note_names_few_keys_and_shortens_them() -> None:
    config = tiny("01-ai/Yi-34B") | {f"key_{i}": 1 for i in range(11)}
    assert read_architecture(config, ()).notes[0].endswith("key_7 and 3 more")
    odd = read_architecture(tiny("01-ai/Yi-34B") | {"k" * 50: 1}, ()).notes[0]
    assert odd.endswith(f": {'k' * 40}...")
