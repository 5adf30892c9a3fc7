"""Norms that multiply with 1 + weight: the data-free rule looks at what they multiply with, not at numbers near 0."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.outliers.norm_gains import ONE_PLUS_WEIGHT, norm_offset, offset_of
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.safetensors.stored import read_array

from ...checkpoints import LLAMA, edit_config, random_tensors, write_checkpoint

_GEMMA: dict[str, Any] = {"head_dim": 16, "hidden_act": "gelu_pytorch_tanh"}


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ({"model_type": "gemma", **_GEMMA}, True),
        ({"model_type": "recurrent_gemma"}, False),
        ({"model_type": "some_vlm", "text_config": {"model_type": "gemma3_text"}}, False),
    ],
)
def test_gains_around_zero_are_no_outliers(
    config: dict[str, Any], known: bool, tmp_path: Path
) -> None:
    """Gains between 0.9 and 1.1 keep nothing; one of 30 keeps its column, and the threshold is that of all others."""
    generator = torch.Generator().manual_seed(0)
    tensors = random_tensors(LLAMA)
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            tensors[name] = (torch.rand(tensor.shape, generator=generator) / 5 - 0.1).half()
    name = "model.layers.1.input_layernorm.weight"
    tensors[name][9] = 29.0
    source = write_checkpoint(tmp_path / "source", tensors=tensors)
    edit_config(source, **config)
    report = convert_checkpoint(source, tmp_path / "out", outliers="data-free")
    assert any("cannot run" in note for note in report.notes) != known
    assert report.outlier_columns == 3 * 16  # every input of that width in the block
    converted = open_converted(tmp_path / "out")
    index = converted.linears["model.layers.1.self_attn.q_proj"].outlier_index
    assert index is not None
    columns = read_array(index)
    assert 9 in columns
    groups = {g.linears[0]: g for g in converted.manifest.inputs if g.outliers}
    assert all("layers.1." in path for path in groups)
    group = groups["model.layers.1.self_attn.q_proj"]
    gains = (1 + tensors[name].float()).numpy()
    rest = [gain for channel, gain in enumerate(gains) if channel not in columns]
    assert group.threshold == pytest.approx(6 * max(rest))


def test_others_are_taken_as_they_are() -> None:
    assert norm_offset({"model_type": "llama", "text_config": 3}, None) == 0
    assert norm_offset({"model_type": ["gemma"]}, None) == 0
    assert norm_offset({"model_type": "gemma3", "text_config": {"model_type": "llama"}}, None) == 0
    assert offset_of("vision_tower.layers.0.norm1.weight", 1.0) == 0
    assert offset_of("language_model.layers.0.norm.weight", 1.0) == 1


@pytest.mark.skipif(transformers.__version__ != "5.23.0", reason="the table is of that release")
def test_the_table_is_that_of_transformers() -> None:
    """Every model whose code adds 1 to a norm's weight, by the names of its configurations; none of what sees or hears."""
    expected = set()
    for code in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        if re.search(r"1\.0 \+ self\.weight|self\.weight \+ 1\.0", code.read_text()):
            config = "".join(path.read_text() for path in code.parent.glob("configuration_*.py"))
            expected |= set(re.findall(r'model_type(?:: str)? = "(\w+)"', config))
    assert expected >= ONE_PLUS_WEIGHT
    senses = {name for name in expected - ONE_PLUS_WEIGHT if re.search("vision|audio", name)}
    assert expected - ONE_PLUS_WEIGHT == senses
