"""Heads beside tied embeddings, and checkpoints without a head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import int8conv
from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.options import ConvertOptions
from int8conv.convert.outliers.calibrate import calibrate
from int8conv.convert.source import open_source
from int8conv.errors import ArgumentError, UnsupportedModelError
from int8conv.formats.hub.download import resolve
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.formats.source.matrix import have_same_values
from int8conv.runtime.models.architecture import read_architecture

from ..checkpoints import LLAMA, OPT, random_tensors, write_checkpoint

TIED = LLAMA | {"tie_word_embeddings": True}
IDS = torch.arange(3, 23)[None]
UNTIED = "the config ties the head to the token embedding"
HEADLESS = "the checkpoint has no head"


def with_head(folder: Path, config: dict[str, Any] = TIED, row: int = 90) -> dict[str, Tensor]:
    """A checkpoint whose config says tied, with a head that differs in one row."""
    tensors = random_tensors(config)
    embed = next(name for name in tensors if "embed_tokens" in name)
    head = tensors[embed].clone()
    head[row, 3] += 0.5
    write_checkpoint(folder, config, tensors | {"lm_head.weight": head})
    return tensors


@pytest.mark.parametrize("config", [TIED, OPT], ids=["llama", "opt"])
def test_another_head_is_kept_and_used_as_transformers_does(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM

    with_head(tmp_path / "source", config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(IDS).logits
    assert (int8conv.load(tmp_path / "source").logits(IDS) - expected).abs().max() <= 1e-4
    report = convert_checkpoint(tmp_path / "source", tmp_path / "out")
    assert [note for note in report.notes if note.startswith(UNTIED)]
    opened = open_converted(tmp_path / "out")
    assert opened.manifest.skipped == {}
    found = int8conv.load(tmp_path / "out", mode="w8a16").logits(IDS)
    assert (found[..., 90] - expected[..., 90]).abs().max() <= 0.05 * expected[..., 90].std()


def test_a_copy_of_the_embedding_is_dropped(tmp_path: Path) -> None:
    tensors = random_tensors(TIED)
    copy = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    write_checkpoint(tmp_path / "source", TIED, tensors | copy)
    report = convert_checkpoint(tmp_path / "source", tmp_path / "out", outliers="none")
    assert report.notes == ()
    assert "lm_head.weight" not in open_converted(tmp_path / "out").checkpoint.tensors
    opened = open_source(resolve(tmp_path / "source"), ConvertOptions())
    assert opened.selection.skipped == {"lm_head.weight": "tied to the token embedding"}


def test_without_reading_weights_a_head_counts_as_a_copy(tmp_path: Path) -> None:
    with_head(tmp_path)
    opened = open_source(resolve(tmp_path), ConvertOptions(), headers_only=True)
    assert opened.selection.skipped == {"lm_head.weight": "tied to the token embedding"}


def test_a_head_of_another_dtype_is_another_head(tmp_path: Path) -> None:
    tensors = random_tensors(TIED)
    head = tensors["model.embed_tokens.weight"].float()
    write_checkpoint(tmp_path, TIED, tensors | {"lm_head.weight": head})
    notes = open_source(resolve(tmp_path), ConvertOptions()).notes
    assert len(notes) == 1
    assert notes[0].startswith(UNTIED)


@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("size", [(1 << 19) - 1, 1 << 19, (1 << 19) + 1])
def test_same_values(tmp_path: Path, size: int, place: int) -> None:
    first = torch.arange(size, dtype=torch.int32).to(torch.int16)
    other = first.clone()
    other[place] ^= 1
    tensors = {"a": first, "b": first.clone(), "c": other}
    stored = open_checkpoint(write_checkpoint(tmp_path, LLAMA, tensors)).tensors
    assert have_same_values(stored["a"], stored["b"])
    assert not have_same_values(stored["a"], stored["c"])


def embedding_model(folder: Path, *, prefix: bool) -> None:
    tensors = random_tensors(LLAMA)
    del tensors["lm_head.weight"]
    if not prefix:
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    write_checkpoint(folder, LLAMA | {"architectures": ["LlamaModel"]}, tensors)


@pytest.mark.parametrize("prefix", [True, False])
def test_an_embedding_model_converts_and_is_not_generated_with(
    tmp_path: Path, *, prefix: bool
) -> None:
    embedding_model(tmp_path / "source", prefix=prefix)
    report = convert_checkpoint(tmp_path / "source", tmp_path / "out")
    assert report.quantized == 14
    assert report.outlier_columns > 0
    assert report.notes[0].startswith(HEADLESS)
    kept = load_file(tmp_path / "source" / "model.safetensors")
    assert set(kept) <= set(open_converted(tmp_path / "out").checkpoint.tensors)
    for folder in ("source", "out"):
        model = int8conv.load(tmp_path / folder)
        assert model.embed([[1, 2, 3]]).norm() == pytest.approx(1)
        for use in (model.generate, model.prompt_logprobs):
            with pytest.raises(UnsupportedModelError, match=r"has no head, 'lm_head\.weight'"):
                use([1, 2, 3])


def test_a_reward_model_keeps_its_score(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    del tensors["lm_head.weight"]
    score = torch.randn(1, 64).half()
    write_checkpoint(tmp_path / "source", LLAMA, tensors | {"score.weight": score})
    assert calibrate(tmp_path / "source").tokens > 0
    convert_checkpoint(tmp_path / "source", tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    assert torch.equal(stored["score.weight"], score)


def test_a_head_that_the_user_leaves_out_is_missed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, LLAMA)
    with pytest.raises(ArgumentError, match="the model needs a tensor that is left out"):
        open_source(resolve(tmp_path), ConvertOptions(exclude=("lm_head",)))


def test_a_bare_config_has_a_head() -> None:
    assert read_architecture(json.loads(json.dumps(LLAMA)), ()).head().path == "lm_head"
    assert read_architecture(TIED, ()).head().path == "model.embed_tokens"
