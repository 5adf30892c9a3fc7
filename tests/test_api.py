"""The public names: which there are, what they show of themselves, and that they cost nothing until they are used."""

from __future__ import annotations

import ast
import inspect
import pydoc
import typing
from importlib import resources
from pathlib import Path

import pytest

import int8conv

FUNCTIONS = {
    "adopt": ["source", "out", "max_shard_bytes", "force", "progress"],
    "calibrate": ["source", "out", "texts", "tokens", "context", "seed", "device", "progress"],
    "compare": ["path", "source", "jobs", "progress"],
    "convert_checkpoint": ["source", "out", "outliers", "dtype", "max_shard_bytes", "keep", "quantize", "include", "exclude",
                           "outlier_rule", "max_outliers", "heavy_tails", "rounding", "calibration_tokens", "head", "stats", "force", "jobs",
                           "max_memory", "stream", "device", "remote_code", "progress"],
    "evaluate": ["path", "text", "against", "mode", "outlier_fallback", "kv_cache", "device", "window", "stride", "tokens", "progress"],
    "export_checkpoint": ["path", "out", "to", "dtype", "fold_outliers", "max_shard_bytes", "progress"],
    "import_checkpoint": ["source", "out", "dtype", "max_shard_bytes", "force", "progress"],
    "inspect_folder": ["path"],
    "load": ["path", "device", "mode", "dtype", "outlier_fallback", "kv_cache", "tokenizer"],
    "predict_footprint": ["path", "context", "batch", "device", "dtype", "kv_cache", "mode", "convert", "tensor_parallel"],
    "push": ["folder", "repository", "private", "evaluation", "force", "dry_run", "progress"],
    "verify": ["path", "progress"],
}  # fmt: skip


def test_public_names() -> None:
    assert int8conv.__all__ == [
        "Constraint", "ConvertReport", "Evaluation", "ExportReport", "FolderSummary", "Footprint", "Generation", "Int8convError", "Likelihood", "Model",
        "PushReport", "Sampling", "SourceComparison", "Stats", "__version__", "adopt", "calibrate", "compare", "convert_checkpoint",
        "errors", "evaluate", "export_checkpoint", "import_checkpoint", "inspect_folder", "load", "predict_footprint", "push", "verify",
    ]  # fmt: skip
    assert dir(int8conv) == int8conv.__all__
    with pytest.raises(AttributeError, match="no attribute 'quantize_it'"):
        _ = int8conv.quantize_it  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", int8conv.__all__)
def test_every_name_is_there_and_has_a_text(name: str) -> None:
    value = getattr(int8conv, name)
    assert value is getattr(int8conv, name)
    if name != "__version__":
        assert inspect.getdoc(value)


def test_type_checkers_are_told_the_same_homes() -> None:
    tree = ast.parse(Path(int8conv.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    told = {
        alias.name: f".{node.module}"
        for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    assert told == int8conv._HOMES
    assert {*told, "Int8convError", "__version__", "errors"} == set(int8conv.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_shows_its_parameters(name: str) -> None:
    function = getattr(int8conv, name)
    signature = inspect.signature(function)
    assert list(signature.parameters) == FUNCTIONS[name]
    shown = pydoc.render_doc(function, renderer=pydoc.plaintext)
    doc = inspect.getdoc(function)
    assert doc is not None
    for parameter in FUNCTIONS[name]:
        assert parameter in shown.partition("Args:")[0]
        assert parameter in doc.partition("Args:")[2].partition("Raises:")[0]
    assert "Raises:" in doc
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


@pytest.mark.parametrize("name", ["logits", "generate", "stream", "generate_batch", "footprint"])
def test_a_method_shows_its_parameters(name: str) -> None:
    method = getattr(int8conv.Model, name)
    assert inspect.getdoc(method)
    hints = typing.get_type_hints(method)
    assert set(inspect.signature(method).parameters) - {"self"} <= set(hints)


def test_the_room_is_a_plain_module() -> None:
    import int8conv.convert

    assert not callable(int8conv.convert)


def test_the_package_says_that_it_has_types() -> None:
    assert (resources.files(int8conv) / "py.typed").is_file()
