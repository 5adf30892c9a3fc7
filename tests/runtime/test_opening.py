"""``open_model``: every way to name a model, and the same checks for all who open one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import int8conv
from int8conv.errors import AlreadyQuantizedError, NotFoundError, UnknownFamilyError
from int8conv.runtime.measure.bench import benchmark
from int8conv.runtime.measure.evaluate import evaluate
from int8conv.runtime.measure.footprint import predict_footprint
from int8conv.runtime.opening import open_model

from ..checkpoints import LLAMA, write_checkpoint
from ..hub_server import ID, HubServer, use_hub


def test_a_converted_folder(example_int8: Path) -> None:
    opened = open_model(example_int8)
    assert opened.converted is not None
    assert opened.checkpoint is opened.converted.checkpoint
    assert opened.folder == example_int8
    assert opened.architecture.config.model_type == opened.config["model_type"]


def test_a_source(source: Path) -> None:
    opened = open_model(source)
    assert opened.converted is None
    assert opened.architecture is opened.architecture


def test_a_single_file_of_several(source: Path) -> None:
    (source / "other.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    opened = open_model(source / "other.safetensors")
    assert opened.folder == source
    assert list(opened.checkpoint.headers) == ["other.safetensors"]


@pytest.mark.parametrize("headers_only", [False, True])
@pytest.mark.parametrize("kind", ["source", "converted"])
def test_the_id_of_one_on_the_hub(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, headers_only: bool, kind: str
) -> None:
    """Weights of a source stay there if only headers are asked for; a converted folder is downloaded."""
    int8conv.convert_checkpoint(source, tmp_path / "converted", outliers="none")
    folder = source if kind == "source" else tmp_path / "converted"
    with HubServer({"main": folder}).running() as server:
        use_hub(monkeypatch, server.url, tmp_path / "home")
        opened = open_model(ID, headers_only=headers_only)
    assert opened.source.id == ID
    assert (opened.converted is None) == (kind == "source")
    assert bool(opened.source.remote) == (kind == "source" and headers_only)
    assert opened.checkpoint.tensors.keys() == open_model(folder).checkpoint.tensors.keys()


def test_a_family_that_the_runtime_does_not_know_opens(tmp_path: Path) -> None:
    """It can be converted; whoever asks for its architecture is told."""
    source = write_checkpoint(tmp_path / "source")
    (source / "config.json").write_text(json.dumps(LLAMA | {"model_type": "unheard_of"}))
    opened = open_model(source)
    with pytest.raises(UnknownFamilyError, match="unheard_of"):
        _ = opened.architecture


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        open_model(tmp_path / "nothing")


@pytest.mark.parametrize(
    "use",
    [
        open_model,
        int8conv.load,
        predict_footprint,
        lambda path: predict_footprint(path, convert=False),
        lambda path: benchmark(path, prompt_tokens=1, new_tokens=1, runs=1),
        lambda path: evaluate(path, Path(__file__)),
        lambda path: int8conv.convert_checkpoint(path, path.parent / "out"),
    ],
    ids=["open", "load", "footprint", "unconverted", "bench", "eval", "convert"],
)
def test_what_another_tool_has_quantized_is_refused_everywhere(
    source: Path, use: Callable[[Path], object]
) -> None:
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(AlreadyQuantizedError, match="gptq"):
        use(source)
    assert not (source.parent / "out").exists()
