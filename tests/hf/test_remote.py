"""``trust_remote_code`` on a folder with code: transformers' own config, whose class is not taken for code of the folder's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, dynamic_module_utils

from int8conv.hf.linear import int8_linears

from .models import convert


def test_a_folder_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = convert("llama", tmp_path, outliers="none", remote_code=True)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path[:])
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config) is LlamaConfig
    assert LlamaConfig._auto_class is None
    assert list(tmp_path.glob("modules/**/int8conv_remote.py"))  # it has been run
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert len(int8_linears(model)) == 14
    model.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not list((tmp_path / "saved").glob("*.py"))
