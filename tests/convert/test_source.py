"""Opening a source: what is said of it, once."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from int8conv.convert.options import ConvertOptions
from int8conv.convert.source import open_source
from int8conv.formats.hub.download import resolve


def notes(source: Path) -> list[str]:
    return list(open_source(resolve(source), ConvertOptions()).notes)


def test_an_adapter_beside_the_weights_is_said_once(source: Path) -> None:
    assert notes(source) == []
    (source / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    alone = [note for note in notes(source) if "merge" in note]
    assert len(alone) == 1
    assert alone[0].startswith("adapter_config.json")
    save_file({"x.lora_A.weight": torch.ones(2, 2)}, source / "adapter_model.safetensors")
    with_weights = [note for note in notes(source) if "merge" in note]
    assert len(with_weights) == 1
    assert "adapter_model.safetensors" in with_weights[0]


def test_an_unknown_model_is_noted_with_the_reason(source: Path) -> None:
    config = json.loads((source / "config.json").read_text()) | {"model_type": "sphinx"}
    (source / "config.json").write_text(json.dumps(config))
    opened = open_source(resolve(source), ConvertOptions())
    assert opened.architecture is None
    assert "unknown model_type 'sphinx'" in opened.notes[0]
