"""The footprint's sums against the files themselves, and against the memory that generating takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from int8conv.convert.converter import convert_checkpoint
from int8conv.errors import ArgumentError, GenerationError
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.measure.footprint import open_predictor, predict_footprint

from ...checkpoints import LLAMA, write_checkpoint


def test_weights_are_all_of_the_files_tensors(example: Path, example_int8: Path) -> None:
    """Of a source as it is loaded, in the dtype of activations, and of a converted folder."""
    source = predict_footprint(example, dtype="float16", convert=False)
    converted = predict_footprint(example_int8)
    assert sum(source.weights.values()) == open_checkpoint(example).nbytes
    assert sum(converted.weights.values()) == open_checkpoint(example_int8, exact=True).nbytes
    kinds = {"int8 weights", "embeddings", "row scales", "outlier columns", "norms"}
    assert set(converted.weights) == kinds
    assert converted.weights_16bit == source.weights_16bit == open_checkpoint(example).nbytes
    assert not converted.estimated
    wide = predict_footprint(example, dtype="float32", convert=False)
    assert sum(wide.weights.values()) == 2 * open_checkpoint(example).nbytes


def test_a_source_is_predicted_as_convert_makes_it(example: Path, example_int8: Path) -> None:
    """Exactly, but for outlier columns: they are an upper bound."""
    before, after = predict_footprint(example), predict_footprint(example_int8)
    assert before.estimated
    columns = "outlier columns"
    assert before.weights[columns] >= after.weights[columns]
    rest = [{k: n for k, n in f.weights.items() if k != columns} for f in (before, after)]
    assert rest[0] == rest[1]


def test_a_config_alone_is_enough(example: Path, tmp_path: Path) -> None:
    shutil.copy(example / "config.json", tmp_path)
    assert predict_footprint(tmp_path).to_json() == predict_footprint(example).to_json()
    assert predict_footprint(tmp_path / "config.json") == predict_footprint(tmp_path)


@pytest.mark.parametrize(("dtype", "item"), [("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_cache_is_layers_heads_positions(example: Path, dtype: str, item: int) -> None:
    footprint = predict_footprint(example, context=100, batch=3, dtype=dtype)
    assert footprint.kv_cache == 6 * 2 * (2 * 64) * 100 * 3 * item
    assert predict_footprint(example, context=100, batch=3, kv_cache=dtype).kv_cache == footprint.kv_cache  # fmt: skip


def test_an_int8_cache_has_a_scale_for_each_head_and_token(example: Path) -> None:
    found = predict_footprint(example, context=100, batch=3, kv_cache="int8").kv_cache
    assert found == 6 * 2 * 2 * (64 + 2) * 100 * 3


def test_total_is_the_sum(example_int8: Path) -> None:
    footprint = predict_footprint(example_int8, context=10)
    parts = footprint.to_json()
    assert parts["total"] == parts["weights_total"] + parts["kv_cache"] + parts["activations"]
    assert parts["fp16"]["total"] == sum(
        parts["fp16"][name] for name in ("weights", "kv_cache", "activations")
    )


def test_the_most_that_fits(example_int8: Path) -> None:
    predictor = open_predictor(example_int8)
    memory = predictor.at(700, 2).total
    assert predictor.largest_context(memory, 2) >= 700
    assert predictor.at(predictor.largest_context(memory, 2), 2).total <= memory
    batch = predictor.largest_batch(memory, 700)
    assert predictor.at(700, batch).total <= memory < predictor.at(700, batch + 1).total
    assert predictor.largest_context(1, 1) == predictor.largest_batch(1, 10) == 0


def test_impossible_requests_are_refused(example: Path) -> None:
    with pytest.raises(GenerationError, match="expected 1 to 1024 positions, found 1025"):
        predict_footprint(example, context=1025)
    for options in ({"batch": 0}, {"dtype": "int4"}, {"kv_cache": "int4"}, {"device": "tpu"}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            predict_footprint(example, **options)  # type: ignore[arg-type]


_MEASURE = """
import json, sys, torch, int8conv
from int8conv.runtime.decoder.working_sizes import PREFILL_TOKENS
from int8conv.runtime.measure import activation_memory
from int8conv.runtime.measure.memory_use import watch_memory

path, context, kv_cache = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if sys.argv[4] == "live":
    activation_memory.SLACK = 0
    activation_memory.LIBRARIES //= 2
memory = watch_memory(torch.device("cpu"))
model = int8conv.load(path, kv_cache=kv_cache)
cache = model.decoder.cache(batch=1, capacity=context)
ids = torch.arange(context)[None].square() % model.config.vocab_size
for part in (*ids[:, :-2].split(PREFILL_TOKENS["cpu"], dim=1), ids[:, -2:-1], ids[:, -1:]):
    model.decoder.forward(part, cache, last_only=True)
used = memory.use(model.folder)
predicted = model.predictor().at(context, 1, prompt=context - 2)
print(json.dumps([used.peak, predicted.total]))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some 200 MB: of a smaller one, what libraries take for themselves would be much."""
    config: dict[str, Any] = LLAMA | {
        "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 12,
        "num_key_value_heads": 4, "max_position_embeddings": 2048, "vocab_size": 8000,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("wide")
    convert_checkpoint(
        write_checkpoint(folder / "source", config), folder / "int8", outliers="none"
    )
    return folder / "int8"


def measured_and_predicted(folder: Path, context: int, kv_cache: str, what: str, **environment: str) -> tuple[int, int]:  # fmt: skip
    """Bytes of a process that generates; predicted with the allowances, or ``live``: without malloc's, and with half of the
    libraries', which take 1 to 8 MB from run to run."""
    command = [sys.executable, "-c", _MEASURE, str(folder), str(context), kv_cache, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)  # fmt: skip
    measured, predicted = json.loads(done.stdout)
    return measured, predicted


needs_linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="measuring needs Linux")  # fmt: skip


@needs_linux
@pytest.mark.parametrize(("context", "kv_cache"), [(1024, "float32"), (2048, "int8")])
def test_the_prediction_is_within_3_percent_of_the_peak(wide: Path, context: int, kv_cache: str) -> None:  # fmt: skip
    """Where malloc gives freed tensors back at once, which makes the peak the same in every run."""
    measured, predicted = measured_and_predicted(wide, context, kv_cache, "live", MALLOC_MMAP_THRESHOLD_="262144")  # fmt: skip
    assert predicted == pytest.approx(measured, rel=0.03)


@needs_linux
def test_what_malloc_keeps_is_allowed_for(wide: Path) -> None:
    """As it is: from run to run its heap differs by up to a tenth of so small a model."""
    measured, predicted = measured_and_predicted(wide, 1024, "float32", "all")
    assert predicted == pytest.approx(measured, rel=0.1)
