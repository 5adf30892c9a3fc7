"""Code in a folder, on request: a module and what names it, and nothing else that differs."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from int8conv.convert.converter import convert_checkpoint
from int8conv.convert.exchange.remote_code import FILE, with_remote_code
from int8conv.errors import ArgumentError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.verify import verify


def test_a_folder_with_code(source: Path, tmp_path: Path) -> None:
    plain, coded = tmp_path / "plain", tmp_path / "coded"
    convert_checkpoint(source, plain, outliers="none")
    convert_checkpoint(source, coded, outliers="none", remote_code=True)
    assert {p.name for p in coded.iterdir()} - {p.name for p in plain.iterdir()} == {FILE}
    configs = [json.loads((folder / "config.json").read_text()) for folder in (plain, coded)]
    assert configs[1].pop("auto_map") == {"AutoConfig": "int8conv_remote.Config"}
    assert configs[0] == configs[1]
    manifests = [open_converted(folder).manifest for folder in (plain, coded)]
    assert set(manifests[1].files) - set(manifests[0].files) == {FILE}
    assert manifests[0].options == manifests[1].options
    verify(coded)
    (call,) = (n for n in ast.walk(ast.parse((coded / FILE).read_text())) if isinstance(n, ast.Call))  # fmt: skip
    assert ast.unparse(call) == "config_class('llama')"


def test_code_of_the_model_itself() -> None:
    own = {"AutoConfig": "a.B", "AutoModelForCausalLM": "c.D", "AutoTokenizer": "e.F"}
    config, _ = with_remote_code({"model_type": "phi3", "auto_map": own}, True, "config.json")
    assert config["auto_map"] == {"AutoConfig": "int8conv_remote.Config", "AutoTokenizer": "e.F"}
    for values, text in (({"model_type": "x", "auto_map": own}, "code of its own"), ({}, "no 'model_type'")):  # fmt: skip
        with pytest.raises(ArgumentError, match=text):
            with_remote_code(values, False, "config.json")
    _, module = with_remote_code({"model_type": 'a"b\n'}, False, "config.json")
    assert ast.parse(module)  # a name is a string there, whatever it is
