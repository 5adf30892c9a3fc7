"""GGUF files: what the package ``gguf`` reads from them is the source, rounded once; llama.cpp, where it is installed, runs them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import int8conv
from int8conv.cli import main
from int8conv.errors import (
    AlreadyQuantizedError,
    ArgumentError,
    HalfOverflowError,
    NonFiniteWeightError,
    OutputExistsError,
)

from ...checkpoints import LLAMA, write_checkpoint

SMALL = Path(__file__).parents[3] / "examples" / "small-llama"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf")
    out = tmp_path_factory.mktemp("gguf") / "small.gguf"
    result = CliRunner().invoke(main, ["export", str(SMALL), str(out), "--to", "gguf"])
    assert result.exit_code == 0, result.output
    assert "56 tensors, 43 matrices in Q8_0; 7.2 MB" in result.output
    assert "SQNR of the weights 45.0 dB" in result.output
    assert [path.name for path in out.parent.iterdir()] == ["small.gguf"]
    return out


def tensors(file: Path) -> dict[str, Any]:
    import gguf

    found = gguf.GGUFReader(file).tensors
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in found}


def test_the_weights_are_the_sources(exported: Path) -> None:
    source, found = load_file(SMALL / "model.safetensors"), tensors(exported)
    assert len(found) == len(source)
    pairs = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.3.mlp.down_proj.weight": "blk.3.ffn_down.weight",
        "model.layers.5.self_attn.v_proj.weight": "blk.5.attn_v.weight",
    }
    for name, other in pairs.items():
        expected = source[name].float().numpy()
        blocks = np.abs(expected.reshape(-1, 32)).max(axis=1, keepdims=True)
        error = np.abs(found[other].reshape(-1, 32) - expected.reshape(-1, 32))
        # half a step, and the rounding of the scale to 16 bits
        assert (error <= blocks * (1 / 254 + 2**-11)).all()
        assert error.max() > 0
    norm = source["model.layers.2.input_layernorm.weight"].float().numpy()
    assert np.array_equal(found["blk.2.attn_norm.weight"], norm)
    q = source["model.layers.0.self_attn.q_proj.weight"].float().numpy()
    heads = 4
    turned = q.reshape(heads, 2, -1, q.shape[1]).swapaxes(1, 2).reshape(q.shape)
    assert np.abs(found["blk.0.attn_q.weight"] - turned).max() < 0.01 * np.abs(q).max()


def test_the_fields(exported: Path) -> None:
    import gguf

    fields = gguf.GGUFReader(exported).fields
    assert fields["general.architecture"].contents() == "llama"
    assert fields["llama.block_count"].contents() == 6
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 8192
    assert len(fields["tokenizer.ggml.merges"].contents()) == 7935
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 0


def test_llama_cpp_runs_it(exported: Path, tmp_path: Path) -> None:
    """Not part of the suite's environment: ``pip install llama-cpp-python`` builds for minutes.

    With the source's weights it computes the source's logits; in Q8_0 it rounds activations as well.
    """
    llama_cpp = pytest.importorskip("llama_cpp")
    int8conv.export_checkpoint(SMALL, tmp_path / "exact.gguf", to="gguf", dtype="float32")
    own = int8conv.load(SMALL)
    for file, within in ((tmp_path / "exact.gguf", 1e-3), (exported, 0.5)):
        model = llama_cpp.Llama(str(file), n_ctx=128, logits_all=True, type_k=0, type_v=0, flash_attn=False, verbose=False)  # fmt: skip
        for prompt in ("A vector is", "The function"):
            ids = own.tokenizer.encode(prompt)
            assert model.tokenize(prompt.encode()) == ids
            made = model.create_completion(prompt, max_tokens=24, temperature=0)
            assert made["choices"][0]["text"] == own.generate(prompt, max_new_tokens=24).text
            model.reset()
            model.eval(ids)
            expected = own.logits(torch.tensor([ids]))[0]
            assert (torch.tensor(model.scores[: len(ids)]) - expected).abs().max() < within


def test_norms_with_an_offset_and_rows_that_are_no_multiple(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    config = LLAMA | {"model_type": "gemma", "vocab_size": 8192, "hidden_size": 48, "head_dim": 16,
                      "hidden_activation": "gelu_pytorch_tanh"}  # fmt: skip
    source = write_checkpoint(tmp_path / "source", config)
    shutil.copy(SMALL / "tokenizer.json", source)
    report = int8conv.export_checkpoint(source, tmp_path / "a.gguf", to="gguf")
    assert report.notes[1].endswith("the first is token_embd.weight")
    found, expected = tensors(tmp_path / "a.gguf"), load_file(source / "model.safetensors")
    norm = expected["model.norm.weight"].float().numpy()
    assert np.array_equal(found["output_norm.weight"], norm + 1)
    embed = expected["model.embed_tokens.weight"].float().numpy()
    assert np.array_equal(found["token_embd.weight"], embed)  # float16 in both


def test_weights_as_floats(tmp_path: Path) -> None:
    """float32 is the source bit for bit; bfloat16 is rounded once."""
    gguf = pytest.importorskip("gguf")
    config = LLAMA | {"model_type": "llama", "vocab_size": 8192}
    source = write_checkpoint(tmp_path / "source", config)
    shutil.copy(SMALL / "tokenizer.json", source)
    weights = load_file(source / "model.safetensors")
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight"}  # fmt: skip
    for dtype, number in (("float32", 0), ("bfloat16", 32)):
        out = tmp_path / dtype
        report = int8conv.export_checkpoint(source, out, to="gguf", dtype=dtype)
        matrices = sum(weight.ndim == 2 for weight in weights.values())
        assert (report.dtype, report.linears) == (dtype, matrices)
        assert bool(report.notes) == (dtype == "bfloat16")
        assert gguf.GGUFReader(out).fields["general.file_type"].contents() == number
        found = tensors(out)
        for name, other in names.items():
            expected = weights[name]
            if dtype == "bfloat16" and expected.ndim == 2:
                expected = expected.bfloat16()
            assert np.array_equal(found[other], expected.float().numpy()), (dtype, name)
    large = "model.layers.0.mlp.down_proj.weight"
    weights[large] = torch.full_like(weights[large], 1e5, dtype=torch.float32)
    save_file(weights, source / "model.safetensors")
    with pytest.raises(HalfOverflowError, match=r"down_proj.*does not fit F16"):
        int8conv.export_checkpoint(source, tmp_path / "b.gguf", to="gguf", dtype="float16")


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    out = tmp_path / "a.gguf"
    int8conv.convert_checkpoint(SMALL, tmp_path / "int8", outliers="none")
    with pytest.raises(AlreadyQuantizedError, match="made from the source"):
        int8conv.export_checkpoint(tmp_path / "int8", out, to="gguf")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in SMALL.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(SMALL / "model.safetensors")
    weights["model.layers.5.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(NonFiniteWeightError, match=r"layers\.5\.mlp\.up_proj"):
        int8conv.export_checkpoint(broken, out, to="gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"int8", "broken"}  # nothing half-written
    out.write_text("mine")
    with pytest.raises(OutputExistsError):
        int8conv.export_checkpoint(SMALL, out, to="gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ArgumentError, match=r"pip install 'int8conv\[gguf\]'"):
        int8conv.export_checkpoint(SMALL, tmp_path / "b.gguf", to="gguf")
