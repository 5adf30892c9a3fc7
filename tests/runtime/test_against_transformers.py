"""The decoder against transformers: the same logits on the same weights, in source precision and converted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig

import int8conv
from int8conv.formats.int8.folder import open_converted

from ..checkpoints import put_fp8
from .reference import TOLERANCE, put_dequantized_weights, token_by_token
from .reference import logits as logits_of
from .reference import reference as make_reference

_LLAMA: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 96,
}  # fmt: skip
_OPT: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 64, "ffn_dim": 176, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 96, "word_embed_proj_dim": 64,
    "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_LLAMA),
    "llama, grouped queries, tied": LlamaConfig(
        **_LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True}
    ),
    "llama, one key head, wide heads, biases": LlamaConfig(
        **_LLAMA | {"num_key_value_heads": 1, "head_dim": 24},
        attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5,
    ),
    "llama, other rotary base, gelu": LlamaConfig(
        **_LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, hidden_act="gelu"
    ),
    "llama, positions scaled as in 3.1": LlamaConfig(
        **_LLAMA,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    ),
    "llama, positions scaled linearly": LlamaConfig(
        **_LLAMA, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    ),
    "opt": OPTConfig(**_OPT),
    "opt, untied, no biases, gelu": OPTConfig(
        **_OPT, tie_word_embeddings=False, enable_bias=False, activation_function="gelu"
    ),
    "opt, norms after the sums, narrow embedding": OPTConfig(
        **_OPT | {"word_embed_proj_dim": 32}, do_layer_norm_before=False
    ),
}  # fmt: skip

_params = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@_params
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_source_precision(config: PretrainedConfig, dtype: torch.dtype, tmp_path: Path) -> None:
    reference = make_reference(config, tmp_path, dtype)
    model = int8conv.load(tmp_path)
    token_ids = torch.randint(101, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = logits_of(reference, token_ids)
    assert expected.std() > 0.03  # not a model that answers the same to everything
    assert (model.logits(token_ids) - expected).abs().max() <= TOLERANCE
    assert (token_by_token(model, token_ids, 17) - expected).abs().max() <= TOLERANCE


@_params
def test_converted(config: PretrainedConfig, tmp_path: Path) -> None:
    """W8A16 is the source with its weights replaced by dequantized weights and outlier columns."""
    reference = make_reference(config, tmp_path / "source", torch.float16)
    int8conv.convert_checkpoint(tmp_path / "source", tmp_path / "int8")
    put_dequantized_weights(reference, tmp_path / "int8")
    model = int8conv.load(tmp_path / "int8", mode="w8a16")
    token_ids = torch.randint(101, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = logits_of(reference, token_ids)
    assert (model.logits(token_ids) - expected).abs().max() <= TOLERANCE
    assert (token_by_token(model, token_ids, 17) - expected).abs().max() <= TOLERANCE


@_params
def test_head_and_embedding_quantized_on_request(config: PretrainedConfig, tmp_path: Path) -> None:
    reference = make_reference(config, tmp_path / "source", torch.float16)
    patterns = ["embed_tokens$"] if config.tie_word_embeddings else ["embed_tokens$", "lm_head"]
    int8conv.convert_checkpoint(tmp_path / "source", tmp_path / "int8", quantize=patterns)
    linears = open_converted(tmp_path / "int8").linears
    assert sum("embed_tokens" in path or path == "lm_head" for path in linears) == len(patterns)
    put_dequantized_weights(reference, tmp_path / "int8")
    model = int8conv.load(tmp_path / "int8", mode="w8a16")
    token_ids = torch.randint(101, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = logits_of(reference, token_ids)
    assert (model.logits(token_ids) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("scales", ["tensor", "row", "block"])
def test_fp8_source(scales: str, tmp_path: Path) -> None:
    """A Llama in FP8, as a source and converted; the reference has its weights decoded by torch."""
    config = CONFIGS["llama, grouped queries, tied"]
    reference = make_reference(config, tmp_path / "source", torch.bfloat16)
    decoded = put_fp8(tmp_path / "source", scales)
    for name, parameter in reference.named_parameters():
        parameter.data = decoded.get(name, parameter.data)
    token_ids = torch.randint(101, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = logits_of(reference, token_ids)
    logits = int8conv.load(tmp_path / "source").logits(token_ids)
    assert (logits - expected).abs().max() <= TOLERANCE
    int8conv.convert_checkpoint(tmp_path / "source", tmp_path / "int8")
    put_dequantized_weights(reference, tmp_path / "int8")
    logits = int8conv.load(tmp_path / "int8", mode="w8a16").logits(token_ids)
    assert (logits - logits_of(reference, token_ids)).abs().max() <= TOLERANCE


def test_trained_checkpoint(example: Path, example_int8: Path) -> None:
    """The example: equal in source precision, close when converted, in either mode and with outlier columns."""
    reference = AutoModelForCausalLM.from_pretrained(example, dtype=torch.float32).eval()
    model = int8conv.load(example)
    token_ids = torch.tensor([model.tokenizer.encode("The function returns a list of " * 12)])
    expected = logits_of(reference, token_ids)
    assert (model.logits(token_ids) - expected).abs().max() <= TOLERANCE
    put_dequantized_weights(reference, example_int8)
    dequantized = logits_of(reference, token_ids)
    assert (
        int8conv.load(example_int8, mode="w8a16").logits(token_ids) - dequantized
    ).abs().max() <= TOLERANCE
    for mode in ("w8a16", "w8a8"):
        logits = int8conv.load(example_int8, mode=mode).logits(token_ids)
        divergence = torch.nn.functional.kl_div(
            logits.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)
        assert divergence.mean() < 2e-3, mode


def test_greedy_text(example: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(example, dtype=torch.float32).eval()
    model = int8conv.load(example)
    prompt = model.tokenizer.encode("A vector is")
    expected = reference.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)
    assert (
        model.generate(prompt, max_new_tokens=64).token_ids == expected[0, len(prompt) :].tolist()
    )


def test_transformers_stops_at_a_converted_folder(example_int8: Path) -> None:
    """It only warns at an unknown quant_method; the codes' third axis is what keeps them from being taken for weights."""
    code = (
        "import sys, transformers; transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])"
    )
    done = subprocess.run(  # in a process that has not imported int8conv.hf
        [sys.executable, "-c", code, example_int8], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ignore_mismatched_sizes" in done.stderr
